"""Benchmark loading of models: time of the first and of later loads, and peak host memory.

    python -m experiments.load_bench --json FILE
    python -m experiments.load_bench --quick     # tiny random model, one case: under a minute

Each load runs in its own process. Peak memory is measured with a random checkpoint of 1.7 GB,
float32 in two shards, above the memory of the imports; ``load_peak_ratio`` is relative to the size
of the checkpoint, and in ``folders`` to the size of the weights in the model's dtype. Weights reach
a device with its own memory by copies. Here the CPU copies, too: ``in_copies_host_ratio`` is the
peak memory beside the weights on the device.

A folder's weights are read at each start. ``kept_speedup`` shows whether a converted copy would be
faster: it is the time to read the folder over the time in which Orbax restores exactly the arrays
of the devices, packed and sharded; both include the tokenizer. Warm: the files are in the page
cache; cold: they are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.make_folder import hf_weights, write_folder
from experiments.measure import arguments, report
from kvflow_jax.models.families.base import TINY_LLAMA
from kvflow_jax.models.families.hf_fields import Json
from kvflow_jax.models.kernels import AUTO, choose_attention
from kvflow_jax.models.kernels.base import KernelTarget
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading import embedded, placement
from kvflow_jax.models.loading.builder import default_ops
from kvflow_jax.models.loading.checkpoint_reader import CHUNK_BYTES, checkpointer
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.ops import XlaOps
from kvflow_jax.models.sharding import Shards
from kvflow_jax.models.tokenizer import Tokenizer

HF: Json = {
    **TINY_LLAMA,
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
TARGETS = {"restore_speedup": ">= 3", "load_peak_ratio": "<= 1.3"}
REPEATS = 2
PAGE = 16  # tokens
CASES = [  # dtype of the files, dtype of the model, number of devices
    ("float32", "float32", 1),
    ("bfloat16", "float32", 1),
    ("bfloat16", "bfloat16", 1),
    ("bfloat16", "float32", 2),
]


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        hf: config.json of the random checkpoint.
        model: model that is converted at its first load; None for the checkpoint itself.
        num_restores: later loads of it.
        repeats: loads of each folder, warm and cold.
        cases: entries of CASES.
    """

    hf: Json
    model: str | None
    num_restores: int
    repeats: int
    cases: list[tuple[str, str, int]]


FULL = Plan(HF, "smollm2-135m", num_restores=3, repeats=REPEATS, cases=CASES)
QUICK = Plan(TINY_LLAMA, None, num_restores=1, repeats=1, cases=CASES[-1:])


def main() -> int:
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        print(json.dumps(_child(**json.loads(sys.argv[2]))))
        return 0
    parser = arguments(__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, one case"
    )
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for dtype in ("float32", "bfloat16"):
            weights = hf_weights(plan.hf, dtype=dtype)
            write_folder(root / dtype, plan.hf, weights=weights, shards=2)
        model = plan.model or str(root / "float32")
        first = _run("load", model, root)
        again = [_run("load", model, root) for _ in range(plan.num_restores)]
        restore_s = min(load["seconds"] for load in again)
        nbytes = _bytes_of(root / "float32")
        importing = _run("import", "", root)["peak_bytes"]
        loading = _run("load", str(root / "float32"), root)
        copied = _run("load", str(root / "float32"), root, in_copies=True)["peak_bytes"]
        figures = {
            "first_load_s": first["seconds"],
            "restore_s": restore_s,
            "restore_speedup": first["seconds"] / restore_s,
            "checkpoint_gb": nbytes / 1e9,
            "checkpoint_load_s": loading["seconds"],
            "load_peak_ratio": (loading["peak_bytes"] - importing) / nbytes,
            "in_copies_host_ratio": (copied - importing) / nbytes - 1,
            "folders": [_kept(root, importing, plan.repeats, *case) for case in plan.cases],
        }
    report(figures, TARGETS, options.json)
    return 0


def _kept(
    root: Path, importing: float, repeats: int, files: str, dtype: str, num_devices: int
) -> dict[str, Any]:
    """Compare reading a folder with restoring its converted weights.

    Args:
        importing: peak memory of the imports alone, bytes.
        files: dtype of the folder's files.
    """
    folder, kept = root / files, root / "kept"
    case = {"dtype": dtype, "num_devices": num_devices}
    child = {"kept": str(kept), **case}
    figures: dict[str, Any] = {"files": files, **case}
    figures["keep_s"] = _run("keep", str(folder), root, **child)["seconds"]
    figures["kept_bytes_ratio"] = _bytes_of(kept) / _bytes_of(folder)
    for cache in ("warm", "cold"):
        times: dict[str, list[float]] = {"load": [], "restore": []}
        peaks: dict[str, float] = {}
        for _ in range(repeats):
            # Alternate, as the load of a shared machine drifts.
            for do, path in (("load", folder), ("restore", kept)):
                if cache == "cold":
                    _drop_page_cache(path)
                measured = _run(do, str(folder), root, **child)
                times[do].append(measured["seconds"])
                peaks[do] = max(peaks.get(do, 0.0), measured["peak_bytes"])
        load_s, restore_s = min(times["load"]), min(times["restore"])
        figures |= {f"load_{cache}_s": load_s, f"restore_{cache}_s": restore_s}
        figures[f"kept_speedup_{cache}"] = load_s / restore_s
    figures["load_peak_ratio"] = (peaks["load"] - importing) / (
        _bytes_of(folder) * np.dtype(dtype).itemsize / np.dtype(files).itemsize
    )
    shutil.rmtree(kept)
    return figures


def _run(do: str, model: str, root: Path, **more: Any) -> dict[str, float]:
    """Run ``_child`` in a new process."""
    what = {"do": do, "model": model, "cache_dir": str(root / "cache"), **more}
    env = dict(os.environ)
    if more.get("num_devices", 1) > 1:
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={more['num_devices']}"
    command = [sys.executable, "-m", "experiments.load_bench", "--child", json.dumps(what)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=Path(__file__).parents[2],
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _child(
    do: str,
    model: str,
    cache_dir: str,
    dtype: str = "float32",
    num_devices: int = 1,
    kept: str = "",
    in_copies: bool = False,
) -> dict[str, float]:
    """Load, keep or restore weights; return the time, seconds, and this process's peak bytes."""
    cache = Path(cache_dir)
    options: dict[str, Any] = {"dtype": dtype, "tensor_parallel": num_devices, "cache_dir": cache}
    jax.block_until_ready(jax.numpy.zeros(1))  # excludes the start of the device
    native_ops(embedded.CONFIG, "float32", cache)  # and the build of the kernels
    start = time.perf_counter()
    if do == "restore":
        jax.block_until_ready(_restore(Path(model), Path(kept), dtype, num_devices, cache))
    elif in_copies:
        jax.block_until_ready(_load_in_copies(Path(model), dtype))
    elif do != "import":
        loaded = load_model(model, **options, progress=False)
        jax.block_until_ready(loaded.params)
        if do == "keep":
            start = time.perf_counter()
            _keep(loaded.params, Path(kept))
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}


def _load_in_copies(folder: Path, dtype: str) -> Params:
    """Load as ``load_model`` does on devices with their own memory."""
    config = read_config(json.loads((folder / "config.json").read_text()))
    model = Model.build(config, dtype)
    return placement.place(model, NamedWeights(model, FolderTensors(folder)), discrete_memory=True)


def _keep(params: Params, kept: Path) -> None:
    """Write an Orbax checkpoint of the weights as they are on the devices."""
    chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in params}
    with checkpointer() as orbax:
        orbax.save(kept, args=ocp.args.PyTreeSave(params, save_args=chunked))


def _restore(folder: Path, kept: Path, dtype: str, num_devices: int, cache_dir: Path) -> Params:
    """Restore what ``_keep`` wrote, with the tokenizer, in place of reading a folder's weights."""
    tokenizer = Tokenizer.from_folder(folder)
    hf = json.loads((folder / "config.json").read_text())
    config = read_config(hf).with_eos(tokenizer.eos_token_ids)
    restore_args: dict[str, Any]
    if num_devices > 1:
        target = KernelTarget.local(config, dtype, PAGE)
        ops = XlaOps(choose_attention(AUTO, target), jax.default_backend())
        model = Model.build(config, dtype, ops=ops)
        shardings = Shards.of_devices(num_devices).weight_shardings(model)
        restore_args = {
            name: ocp.ArrayRestoreArgs(sharding=sharding) for name, sharding in shardings.items()
        }
    else:
        specs = Model.build(config, dtype, ops=default_ops(config, dtype, cache_dir)).specs
        restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in specs}
    with checkpointer() as orbax:
        params = orbax.restore(kept, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    return {name: jax.device_put(weight, may_alias=True) for name, weight in params.items()}


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))


def _drop_page_cache(folder: Path) -> None:
    """Remove a folder's files from the page cache."""
    os.sync()
    for file in _files(folder):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _peak_bytes() -> int:
    """Return this process's peak memory. That of ``getrusage`` may include its parent's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
