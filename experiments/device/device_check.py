"""Check a device: a model served, kernels against the reference, rates, the gain of KVFlow.

    python -m experiments.device_check --json FILE
    python -m experiments.device_check --stages serve kernels --json FILE
    python -m experiments.device_check --quick     # few sizes, no model: a check of the command

Stages, the most telling first: ``serve`` checks that tokens do not depend on the cache and runs the
paper's cycle of ten agents over the real link under gpu-only, hicache and kvflow; ``kernels`` holds
every attention kernel that supports the device against the reference; ``rates`` measures the
ceilings of compute and memory, the host link and its overlap with steps, and the model's prefill
and decode beside them; ``int8`` the same model with weights in 8 bits; ``shapes`` checks kernels on
more shapes of heads. It runs from a bare checkout with JAX, Flax, Orbax and transformers. On an
accelerator the model is the shape of Llama-3.1-8B, or of Llama-3.2-1B if that does not fit, with
random weights.

A section that fails is reported, and the others go on; the JSON file is written after each. Exits
with 1 if a section failed, a kernel is wrong or a token depends on the cache.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from experiments.device.device_exactness import exactness
from experiments.device.device_kernels import check_kernel, check_shapes
from experiments.device.device_model import Plan, cycle_arms, model_rates
from experiments.measure import arguments, machine, report, seconds, write_json
from kvflow_jax.api.load_config import Dtype, LoadConfig
from kvflow_jax.engine.sizes import GIB
from kvflow_jax.models.dtypes import DTYPES
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels import AUTO, KERNELS

MIB = 1 << 20
SIZES_MIB = (1, 32, 256)  # of copies over the host link
EIGHT_B_BYTES = 20 * GIB  # weights, pool and a step of llama-3.1-8b


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--stages",
        choices=STAGES,
        nargs="+",
        metavar="STAGE",
        help=f"default: all, {', '.join(STAGES)}",
    )
    parser.add_argument(
        "--model",
        help="default: smollm2-135m on CPU, else the shape of llama-3.1-8b, or of llama-3.2-1b if "
        "that does not fit",
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="random weights of the model's shape"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights; default: bfloat16, on CPU float32"
    )
    parser.add_argument("--no-model", action="store_true", help="check the device only")
    parser.add_argument(
        "--attention",
        choices=[AUTO, *KERNELS],
        nargs="+",
        default=[AUTO],
        help="attention kernels of the model; the cycle takes the first",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few sizes, no model; the stages kernels and rates"
    )
    options = parser.parse_args()
    if options.quick and options.stages:
        parser.error(f"--quick runs the stages {' and '.join(QUICK_STAGES)}: leave out --stages")
    start = time.monotonic()
    check = DeviceCheck(options)
    for stage in QUICK_STAGES if options.quick else options.stages or STAGES:
        STAGES[stage](check)
    sections = check.sections
    sections.figures |= {"took_s": time.monotonic() - start, "problems": sections.problems}
    report(sections.figures, {"problems": "none"}, options.json)
    return 1 if sections.problems else 0


class DeviceCheck:
    """The stages, a method each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.sections = Sections(options.json)
        self._device = jax.devices()[0]
        on_cpu = self._device.platform == "cpu"
        self._dtype: Dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
        self._is_quick = options.quick
        self._longest = 256 if on_cpu or options.quick else 4096
        self._kernels = {key: kernel for key, kernel in KERNELS.items() if key != "reference"}
        name = options.model or default_model(self._device)
        self._shape = PRESETS.get(name, PRESETS["llama-3.1-8b"])
        is_random = options.random_weights or (options.model is None and not on_cpu)
        load = LoadConfig(name, random_weights=is_random, dtype=self._dtype)
        has_model = not (options.no_model or options.quick)
        self._loads = [replace(load, attention=key) for key in options.attention if has_model]
        self._plan = Plan.on(self._device)
        self.sections.figures |= {"device": machine(), "dtype": self._dtype}

    def serve(self) -> None:
        """Check that tokens do not depend on the cache; run the cycle."""
        for load in self._loads:
            check = partial(exactness, self._device, self._dtype, load.attention)
            self.sections.run_checked("exactness", check)
        for load in self._loads[:1]:
            self.sections.run("cycle", partial(cycle_arms, load, self._plan))

    def kernels(self) -> None:
        """Hold every attention kernel against the reference."""
        self._ensure_ceilings()
        for key, kernel in self._kernels.items():
            sizes = self._shape, self._dtype, self._longest
            check = partial(check_kernel, key, kernel, *sizes, self.sections.figures)
            self.sections.run_checked(f"attention.{key}", check)

    def rates(self) -> None:
        """Measure the device, and the model beside its ceilings."""
        self.sections.run("memory", lambda: memory(self._device))
        self._ensure_ceilings()
        sizes = SIZES_MIB[:1] if self._is_quick else SIZES_MIB
        self.sections.run("host_link", lambda: host_link(self._device, sizes))
        if not self._is_quick:
            self.sections.run("overlap", lambda: overlap(self._device, self._dtype))
        self._measure(self._loads)

    def int8(self) -> None:
        """Measure the model with weights in 8 bits."""
        self._measure([replace(load, quantize="int8") for load in self._loads])

    def shapes(self) -> None:
        """Check the kernels on more shapes of heads."""
        for key, kernel in self._kernels.items():
            check = partial(check_shapes, key, kernel, self._longest)
            self.sections.run_checked(f"attention.{key}.shapes", check)

    def _measure(self, loads: Sequence[LoadConfig]) -> None:
        self._ensure_ceilings()
        figures = self.sections.figures
        for load in loads:
            self.sections.run("model", partial(model_rates, load, self._plan, figures))

    def _ensure_ceilings(self) -> None:
        """Measure what the other figures are fractions of, once."""
        if "matmul_tflops" not in self.sections.figures:
            measure = partial(ceilings, self._device, self._dtype, self._is_quick)
            self.sections.run("ceilings", measure)


STAGES: dict[str, Callable[[DeviceCheck], None]] = {
    "serve": DeviceCheck.serve,
    "kernels": DeviceCheck.kernels,
    "rates": DeviceCheck.rates,
    "int8": DeviceCheck.int8,
    "shapes": DeviceCheck.shapes,
}
QUICK_STAGES = ("kernels", "rates")


class Sections:
    """Figures of sections that run one after the other, whether or not the others fail.

    Args:
        path: file to which the figures are written after each section; None: no file.
    """

    def __init__(self, path: Path | None) -> None:
        self.figures: dict[str, Any] = {}
        self.problems: list[str] = []
        self._path = path

    def run(self, name: str, section: Callable[[], dict[str, Any]]) -> None:
        """Add a section's figures, or a problem if it fails."""
        self.run_checked(name, lambda: (section(), []))

    def run_checked(
        self, name: str, section: Callable[[], tuple[dict[str, Any], list[str]]]
    ) -> None:
        """Add a section's figures and problems."""
        start = time.monotonic()
        try:
            figures, problems = section()
        except Exception as error:  # compilers and devices raise any type
            traceback.print_exc()
            figures, problems = {}, [f"{name} failed: {type(error).__name__}: {error}"]
        self.figures |= figures
        self.problems += problems
        print(
            f"{name}, {time.monotonic() - start:.1f} s: {figures}", *problems, sep="\n", flush=True
        )
        write_json({**self.figures, "problems": self.problems}, self._path)


def default_model(device: jax.Device) -> str:
    """Return the largest default model that fits the device."""
    if device.platform == "cpu":
        return "smollm2-135m"
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return "llama-3.1-8b" if limit > EIGHT_B_BYTES else "llama-3.2-1b"


def memory(device: jax.Device) -> dict[str, Any]:
    """Return the kinds of memory and the memory limit."""
    stats = device.memory_stats() or {}
    return {
        "memory_kinds": sorted(kind.kind for kind in device.addressable_memories()),
        "memory_bytes_limit": stats.get("bytes_limit"),
    }


def ceilings(device: jax.Device, dtype: str, is_quick: bool = False) -> dict[str, Any]:
    """Measure the rates of matrix products and of memory that JAX achieves."""
    size, copy_mib = (2048, 128) if device.platform == "cpu" else (8192, 2048)
    size, copy_mib = (512, 16) if is_quick else (size, copy_mib)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(a, a))
    matmul_s = min(seconds(lambda: product(a, a), 1) for _ in range(8))
    x = jnp.ones(copy_mib * MIB // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    add = jax.jit(lambda v: v + 1)
    jax.block_until_ready((total(x), add(x)))
    read_s = min(seconds(lambda: total(x), 1) for _ in range(8))
    copy_s = min(seconds(lambda: add(x), 1) for _ in range(8))
    return {
        "matmul_tflops": 2 * size**3 / matmul_s / 1e12,
        "read_gb_s": x.nbytes / read_s / 1e9,
        "read_and_write_gb_s": 2 * x.nbytes / copy_s / 1e9,
    }


def host_link(device: jax.Device, sizes_mib: Sequence[int] = SIZES_MIB) -> dict[str, Any]:
    """Measure device_put in GB/s, in both directions, for each kind of host memory."""
    figures: dict[str, Any] = {}
    device_memory = SingleDeviceSharding(device)
    for size_mib in sizes_mib:
        on_device = jnp.ones(size_mib * MIB // 4, jnp.float32)
        for kind in ("pinned_host", "unpinned_host"):
            if kind not in {memory.kind for memory in device.addressable_memories()}:
                continue
            host_memory = SingleDeviceSharding(device, memory_kind=kind)
            on_host = jax.block_until_ready(jax.device_put(on_device, host_memory))
            for name, array, target in (
                (f"{kind}_to_device", on_host, device_memory),
                (f"device_to_{kind}", on_device, host_memory),
            ):
                put = _put(array, target)
                jax.block_until_ready(put())
                best = min(seconds(put, 1) for _ in range(5))
                figures[f"{name}_{size_mib}mib_gb_s"] = on_device.nbytes / best / 1e9
    return figures


def _put(array: jax.Array, target: SingleDeviceSharding) -> Callable[[], jax.Array]:
    return lambda: jax.device_put(array, target)


def overlap(device: jax.Device, dtype: str) -> dict[str, Any]:
    """Measure the overlap of a copy from pinned host memory with a step, in both issue orders.

    1 means that the shorter of the two is hidden entirely, 0 that they run in sequence.
    """
    if "pinned_host" not in {kind.kind for kind in device.addressable_memories()}:
        return {"overlap_copy_first": None, "overlap_step_first": None}
    size = 1024 if device.platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype)) / size**0.5

    @jax.jit
    def busy(x: jax.Array, rounds: jax.Array) -> jax.Array:
        product: jax.Array = jax.lax.fori_loop(0, rounds, lambda _, y: jnp.dot(y, x), x)
        return product

    num_bytes = (64 if device.platform == "cpu" else 1024) * MIB
    host_memory = SingleDeviceSharding(device, memory_kind="pinned_host")
    ones = jnp.ones(num_bytes // 4, jnp.float32)
    on_host = jax.block_until_ready(jax.device_put(ones, host_memory))
    copy = _put(on_host, SingleDeviceSharding(device))
    jax.block_until_ready((busy(a, 4), copy()))
    copy_s = seconds(copy)
    rounds = max(1, round(copy_s / (seconds(lambda: busy(a, 8)) / 8)))
    step_s = seconds(lambda: busy(a, rounds))
    first = seconds(lambda: (copy(), busy(a, rounds)))
    after = seconds(lambda: (busy(a, rounds), copy()))
    shorter = min(copy_s, step_s)
    return {
        "overlap_copy_ms": copy_s * 1e3,
        "overlap_step_ms": step_s * 1e3,
        "overlap_copy_first": (copy_s + step_s - first) / shorter,
        "overlap_step_first": (copy_s + step_s - after) / shorter,
    }


if __name__ == "__main__":
    sys.exit(main())
