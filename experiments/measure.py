"""Shared parts of the benches: timing, ceilings of the machine, tables and JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from kvflow_jax.api.options import LLMOptions
from kvflow_jax.config.values import COUNT, INDEX, POSITIVE
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.serve.argument_parser import ArgumentParser, argument_type
from kvflow_jax.speculation.config import NO_SPECULATION

# Written by ``experiments.bench.fit_profile``, read for the machine ``this-machine``.
THIS_MACHINE = Path(__file__).parent / "results" / "profile_this_machine.json"
# The engine of quick runs. Deterministic: two batch shapes, which compile in seconds.
QUICK_ENGINE = LLMOptions(
    pool_gib=0.02,
    max_num_seqs=4,
    max_model_len=512,
    deterministic=True,
    speculative_config=NO_SPECULATION,
)


def arguments(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flag that all experiments share, ``--json``.

    Args:
        docstring: of the experiment's module; its first line is the description.
    """
    parser = ArgumentParser(prog=command_name(), description=first_line(docstring))
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="also write the figures to FILE"
    )
    return parser


def output_file(text: str) -> Path:
    """Return the path of a flag whose file is written at the end, checked at the start."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file")
    output_folder(str(path.parent))
    return path


def output_folder(text: str) -> Path:
    """Return the path of a flag whose folder is written at the end, made if there is none yet."""
    path = Path(text)
    nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{str(nearest)!r} is no folder")
    if not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"folder {str(nearest)!r} cannot be written to")
    return path


def first_line(docstring: str | None) -> str:
    """Return the first line of a docstring; Python drops docstrings with ``-OO``."""
    return (docstring or "").partition("\n")[0]


def command_name() -> str:
    """Return how this process was started, for usage lines: argparse knows the file only."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


non_negative_int = argument_type(INDEX)
positive_int = argument_type(COUNT)
positive_float = argument_type(POSITIVE)


def interruptible(run: Callable[[], int]) -> int:
    """Run an experiment; return its exit status, 130 after Ctrl-C."""
    try:
        return run()
    except KeyboardInterrupt:
        print("\nstopped; with --json, the same command resumes from here", file=sys.stderr)
        return 130


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median wall time of ``call``, seconds, until its arrays are ready."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_flops_per_token(config: ModelConfig) -> int:
    """Return the FLOPs of all layers' projections for one token: two per weight."""
    return 2 * config.num_layers * sum(a * b for a, b in projections(config))


def projections(config: ModelConfig) -> list[tuple[int, int]]:
    """Return (in, out) of each matrix product of one layer, fused as the model runs them."""
    heads_size = config.num_heads * config.head_dim
    return [
        (config.hidden_size, config.qkv_size),
        (heads_size, config.hidden_size),
        (config.hidden_size, 2 * config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    ]


def prefill_flops(config: ModelConfig, num_tokens: int) -> int:
    """Return the useful FLOPs of a cold prompt.

    These are the projections, causal attention, and the logits of the last token.
    """
    pairs = num_tokens * (num_tokens + 1) // 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    logits = 2 * config.hidden_size * config.vocab_size
    return num_tokens * matmul_flops_per_token(config) + attention + logits


class MatmulCeiling:
    """The rate of a model's bare projections over ``num_tokens`` rows, the ceiling of a prefill.

    The rate is sustained over ``seconds``, because a prefill takes seconds, too: on a shared
    machine the best of many short runs is a rate that nothing sustains.
    """

    def __init__(self, config: ModelConfig, num_tokens: int, dtype: str = "float32") -> None:
        @jax.jit
        def layer(x: list[jax.Array], w: list[jax.Array]) -> list[jax.Array]:
            # As the models multiply: XLA's CPU products of bfloat16 are fast only so.
            sums = jnp.float32
            return [jnp.dot(a, b, preferred_element_type=sums) for a, b in zip(x, w, strict=True)]

        shapes = projections(config)
        keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
        dt = jnp.dtype(dtype)
        x = [
            jax.random.normal(k, (num_tokens, a), dt)
            for k, (a, _) in zip(keys, shapes, strict=False)
        ]
        w = [
            jax.random.normal(k, shape, dt)
            for k, shape in zip(keys[len(shapes) :], shapes, strict=True)
        ]
        self._layer, self._x, self._w = layer, x, w
        self._flops = 2 * num_tokens * sum(a * b for a, b in shapes)
        self._run()

    def flops_per_s(self, seconds: float = 1.0) -> float:
        """Run the projections for ``seconds``; return the mean rate."""
        start, num_runs = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            self._run()
            num_runs += 1
        return num_runs * self._flops / spent

    def _run(self) -> None:
        jax.block_until_ready(self._layer(self._x, self._w))


class BandwidthCeiling:
    """The rate at which matrix-vector products read a model's weights, by numpy's BLAS.

    It uses all cores and plain matrices of the model's shapes, as many bytes as the weights have.
    """

    def __init__(self, config: ModelConfig) -> None:
        shapes = [
            (num_out, num_in)
            for num_in, num_out in projections(config)
            for _ in range(config.num_layers)
        ]
        shapes.append((config.vocab_size, config.hidden_size))
        self._weights = [np.full(shape, 0.01, np.float32) for shape in shapes]
        self._vectors = {shape[1]: np.ones(shape[1], np.float32) for shape in shapes}
        self.nbytes = sum(weight.nbytes for weight in self._weights)

    def bytes_per_s(self, repeats: int = 5) -> float:
        """Return the rate of the best of several passes over all weights."""
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            for weight in self._weights:
                np.dot(weight, self._vectors[weight.shape[1]])
            times.append(time.perf_counter() - start)
        return self.nbytes / min(times)


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process, bytes (Linux); default: of this one."""
    statm = Path("/proc", str(pid or "self"), "statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def counted_compiles() -> Iterator[list[str]]:
    """Collect an entry for each program that the backend compiles or loads within the block."""
    events: list[str] = []
    is_on = True

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if is_on and event == "/jax/core/compile/backend_compile_duration":
            events.append(f"{event} {duration_secs:.3f}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        is_on = False


def machine() -> dict[str, Any]:
    """Describe the machine that the figures were measured on."""
    device = jax.devices()[0]
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def report(figures: Mapping[str, Any], reach: Mapping[str, str], path: Path | None) -> None:
    """Print a table of figures and their goals (``reach``), and write JSON to ``path`` if given."""
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        if isinstance(value, dict | list):
            value = json.dumps(value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{key:{width}}  {value}" + (f"   ({reach[key]})" if key in reach else ""))
    write_json(figures, path)


def write_json(figures: Mapping[str, Any], path: Path | None) -> None:
    """Write the figures and the machine they were measured on to ``path``, if given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
        print(f"wrote {path}")
