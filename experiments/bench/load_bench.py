"""How fast a model is loaded, first and again, and how much host memory that takes.

    python -m experiments.load_bench --json FILE

Each load runs in a process of its own. Peak memory is that of a made-up checkpoint of 1.7 GB,
float32 in two shards, above what importing takes, over the checkpoint's size; of ``folders`` over
that of the weights in the model's dtype. A device with memory of its own is sent its weights in
copies: the CPU is made to do so, too, and ``in_copies_host_ratio`` is what the process has at most
beside the weights on the device.

A folder is read anew at each start. Whether keeping what was made of it would pay is measured here:
``kept_speedup`` is the time of reading the folder over that of restoring, by Orbax, exactly what
lies on the devices, packed and with its sharding, the tokenizer included in both. Warm: the files
are in the page cache; cold: they are not.
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
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.make_folder import FAMILIES, hf_weights, write_folder
from experiments.measure import arguments, report
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading import embedded, placement
from kvflow_jax.models.loading.checkpoint_reader import CHUNK_BYTES, checkpointer
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.load import default_ops, load_model
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.sharding import Shards
from kvflow_jax.models.tokenizer import Tokenizer

HF = FAMILIES["llama"] | {
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
CASES = [  # dtype of the files, of the model, devices
    ("float32", "float32", 1),
    ("bfloat16", "float32", 1),
    ("bfloat16", "bfloat16", 1),
    ("bfloat16", "float32", 2),
]


def main() -> int:
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        print(json.dumps(_child(**json.loads(sys.argv[2]))))
        return 0
    options = arguments(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        first = _run("load", "smollm2-135m", place)
        again = [_run("load", "smollm2-135m", place) for _ in range(3)]
        restore_s = min(one["seconds"] for one in again)
        for dtype in ("float32", "bfloat16"):
            write_folder(place / dtype, HF, weights=hf_weights(HF, dtype=dtype), shards=2)
        nbytes = _bytes_of(place / "float32")
        importing = _run("import", "", place)["peak_bytes"]
        loading = _run("load", str(place / "float32"), place)
        sent = _run("load", str(place / "float32"), place, in_copies=True)["peak_bytes"]
        figures = {
            "first_load_s": first["seconds"],
            "restore_s": restore_s,
            "restore_speedup": first["seconds"] / restore_s,
            "checkpoint_gb": nbytes / 1e9,
            "checkpoint_load_s": loading["seconds"],
            "load_peak_ratio": (loading["peak_bytes"] - importing) / nbytes,
            "in_copies_host_ratio": (sent - importing) / nbytes - 1,
            "folders": [_kept(place, importing, *case) for case in CASES],
        }
    report(figures, TARGETS, options.json)
    return 0


def _kept(
    place: Path, importing: float, files: str, dtype: str, num_devices: int
) -> dict[str, Any]:
    """A folder read anew, beside what was made of it restored."""
    folder, kept = place / files, place / "kept"
    case = {"dtype": dtype, "num_devices": num_devices}
    how = {"kept": str(kept), **case}
    figures: dict[str, Any] = {"files": files, **case}
    figures["keep_s"] = _run("keep", str(folder), place, **how)["seconds"]
    figures["kept_bytes_ratio"] = _bytes_of(kept) / _bytes_of(folder)
    for cache in ("warm", "cold"):
        times: dict[str, list[float]] = {"load": [], "restore": []}
        peaks: dict[str, float] = {}
        for _ in range(REPEATS):
            for do, path in (("load", folder), ("restore", kept)):  # in turns: others use it too
                if cache == "cold":
                    _forget(path)
                done = _run(do, str(folder), place, **how)
                times[do].append(done["seconds"])
                peaks[do] = max(peaks.get(do, 0.0), done["peak_bytes"])
        load_s, restore_s = min(times["load"]), min(times["restore"])
        figures |= {f"load_{cache}_s": load_s, f"restore_{cache}_s": restore_s}
        figures[f"kept_speedup_{cache}"] = load_s / restore_s
    figures["load_peak_ratio"] = (peaks["load"] - importing) / (
        _bytes_of(folder) * np.dtype(dtype).itemsize / np.dtype(files).itemsize
    )
    shutil.rmtree(kept)
    return figures


def _run(do: str, model: str, place: Path, **more: Any) -> dict[str, float]:
    what = {"do": do, "model": model, "cache_dir": str(place / "cache"), **more}
    env = dict(os.environ)
    if more.get("num_devices", 1) > 1:
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={more['num_devices']}"
    command = [sys.executable, "-m", "experiments.load_bench", "--child", json.dumps(what)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
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
    """What it takes, seconds, and the most memory this process has had, bytes."""
    cache = Path(cache_dir)
    how: dict[str, Any] = {"dtype": dtype, "tensor_parallel": num_devices, "cache_dir": cache}
    jax.block_until_ready(jax.numpy.zeros(1))  # whatever starting the device takes
    native_ops(embedded.CONFIG, "float32", cache)  # and building the kernels
    start = time.perf_counter()
    if do == "restore":
        jax.block_until_ready(_restore(Path(model), Path(kept), dtype, num_devices, cache))
    elif in_copies:
        jax.block_until_ready(_load_in_copies(Path(model), dtype))
    elif do != "import":
        loaded = load_model(model, **how, progress=False)
        jax.block_until_ready(loaded.params)
    if do == "keep":
        start = time.perf_counter()
        _keep(loaded.params, Path(kept))
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}


def _load_in_copies(folder: Path, dtype: str) -> Params:
    """What ``load_model`` does where devices have memory of their own."""
    config = read_config(json.loads((folder / "config.json").read_text()))
    model = Model.build(config, dtype)
    return placement.place(model, NamedWeights(model, FolderTensors(folder)), discrete_memory=True)


def _keep(params: Params, kept: Path) -> None:
    chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in params}
    with checkpointer() as orbax:
        orbax.save(kept, args=ocp.args.PyTreeSave(params, save_args=chunked))


def _restore(folder: Path, kept: Path, dtype: str, num_devices: int, cache_dir: Path) -> Params:
    """What ``load_model`` would do instead of reading a folder's weights."""
    tokenizer = Tokenizer.from_folder(folder)
    hf = json.loads((folder / "config.json").read_text())
    config = read_config(hf).with_eos(tokenizer.eos_token_ids)
    how: dict[str, Any]
    if num_devices > 1:
        shards = Shards.of_devices(num_devices)
        where = shards.weight_shardings(Model.build(config, dtype))
        how = {name: ocp.ArrayRestoreArgs(sharding=one) for name, one in where.items()}
    else:
        specs = Model.build(config, dtype, ops=default_ops(config, dtype, cache_dir)).specs
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in specs}
    with checkpointer() as orbax:
        params = orbax.restore(kept, args=ocp.args.PyTreeRestore(restore_args=how))
    return {name: jax.device_put(weight, may_alias=True) for name, weight in params.items()}


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))


def _forget(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    os.sync()
    for file in _files(folder):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _peak_bytes() -> int:
    """Most memory this process has had. What getrusage says may be its parent's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
