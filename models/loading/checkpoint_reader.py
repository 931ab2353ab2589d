"""Reads and writes a folder of Orbax checkpoints, one a layer.

Weights that the host packs for its kernels are written packed: a start reads what it keeps, and a
quantised model takes no more room on the disk than in memory. Others are written as they are.

Orbax writes Zarr arrays through TensorStore. Reading goes to TensorStore directly: it copies the
chunks of a requested slice straight into the caller's buffer. Each file is checked against its
digest before it is read for the first time.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.weights import Index, WeightSource
from kvflow_jax.models.model import LAYERS, Model

# Raise it when names, shapes, folders or the meaning of weights change.
FORMAT = 5
# Bytes of a Zarr chunk; chunks are read in parallel.
CHUNK_BYTES = 16 << 20
# Lists every other file of a checkpoint with its size and digest.
MANIFEST_FILE = "complete.json"
WEIGHTS, ENDS = "weights", "ends"

_READ_BYTES = 1 << 20


class UnusableCheckpointError(ModelLoadError):
    """A cached checkpoint differs from what was written: older format, torn write or disk error."""


class CheckpointWeights:
    """The weights of a cached checkpoint, a ``WeightSource``.

    Raises:
        UnusableCheckpointError: on construction or by ``read``.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self._path = path
        self.is_packed = not model.ops.packs_on_device
        with _raise_unusable(path):
            manifest = json.loads((path / MANIFEST_FILE).read_text())
            if manifest["weights"] != (expected := _signature(model)):
                raise ValueError(f"expected {expected}, found {manifest['weights']}")
            sizes = {name: size for name, (size, _) in manifest["files"].items()}
            if sizes != (found := {name: _size(path / name) for name in _files(path)}):
                wrong = {name for name, _ in sizes.items() ^ found.items()}
                raise ValueError(f"missing or of the wrong size: {', '.join(sorted(wrong))}")
            self._unchecked = {name: digest for name, (_, digest) in manifest["files"].items()}
            self._check([name for name in sizes if not name.startswith(f"{WEIGHTS}/")])

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        reads = [(f"{ENDS}/{name}", index, out)]
        if name.startswith(LAYERS):
            layers, *rest = index
            reads = [
                (f"{LAYERS}{i}/{name.removeprefix(LAYERS)}", tuple(rest), out[i - layers.start])
                for i in range(layers.start, layers.stop)
            ]
        with _raise_unusable(self._path):
            futures = [self._start_read(*read) for read in reads]
            for future in futures:
                future.result()

    def raise_problems(self) -> None:
        """Do nothing: ``read`` raises at once."""

    def _start_read(self, name: str, index: Index, out: np.ndarray) -> Any:
        """Start copying ``array[index]`` into ``out``; return a TensorStore future."""
        import tensorstore

        folder = f"{WEIGHTS}/{name}"
        self._check([f"{folder}/.zarray"])
        store = {"driver": "file", "path": str(self._path / folder)}
        array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
        chunks = array.spec().to_json()["metadata"]["chunks"]
        touched = [
            range(bounds.start // size, -(-bounds.stop // size))
            for bounds, size in zip(index, chunks, strict=True)
        ]
        self._check(f"{folder}/{'.'.join(map(str, chunk))}" for chunk in product(*touched))
        return tensorstore.array(out).write(array[index])

    def _check(self, files: Iterable[str]) -> None:
        """Compare files with their digests, unless they have been compared before."""
        for name in files:
            # A chunk of zeros has no file and no digest.
            digest = self._unchecked.pop(name, None)
            if digest is not None and digest != _digest(self._path / name):
                raise ValueError(f"the content of {name} has changed since it was written")


def write_weights(path: Path, model: Model, source: WeightSource, *, progress: bool) -> None:
    """Convert weights layer by layer; host memory holds one layer at a time.

    Raises:
        ModelLoadError: listing every problem found while reading ``source``.
    """
    import orbax.checkpoint as ocp
    from tqdm import tqdm

    items = _items(model)
    with checkpointer() as orbax, _without_orbax_warnings():
        for item, names in tqdm(items.items(), desc="Converting", disable=not progress):
            weights = {
                name: _form(model, stacked_name, _read_layer(model, source, stacked_name, layer))
                for name, (stacked_name, layer) in names.items()
            }
            chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in weights}
            orbax.save(path / WEIGHTS / item, args=ocp.args.PyTreeSave(weights, save_args=chunked))
    source.raise_problems()


def num_bytes(model: Model) -> int:
    """Return the size of a model's weights in a checkpoint."""
    specs = model.stacked_specs if model.ops.packs_on_device else model.specs
    return sum(spec.size * spec.dtype.itemsize for spec in specs.values())


def write_manifest(path: Path, model: Model) -> None:
    """Write the manifest of a complete checkpoint and flush all of its files to the disk.

    A power failure after the rename that follows cannot leave a torn checkpoint.
    """
    files = {name: (_size(path / name), _digest(path / name)) for name in _files(path)}
    manifest = {"weights": _signature(model), "files": files}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    for file in [*path.rglob("*"), path]:
        fsync(file)


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def checkpointer() -> Any:
    """Return an Orbax ``Checkpointer`` with this cache's settings."""
    import orbax.checkpoint as ocp

    # Each process that shares a model has a checkpoint of its own and writes it without the
    # others: processes may start with different caches, or on different machines.
    single_process = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process-{jax.process_index()}",
    )
    # One process, few large arrays: plain files restore faster than the OCDBT store, and
    # compressing float32 weights takes ten times as long as writing them.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, multiprocessing_options=single_process
    )
    return ocp.Checkpointer(handler, multiprocessing_options=single_process)


def _items(model: Model) -> dict[str, dict[str, tuple[str, int | None]]]:
    """Map each Orbax checkpoint to its arrays, and these to (stacked weight, layer)."""
    items: dict[str, dict[str, tuple[str, int | None]]] = {ENDS: {}}
    items |= {f"{LAYERS}{i}": {} for i in range(model.config.num_layers)}
    for name in model.stacked_specs:
        if not name.startswith(LAYERS):
            items[ENDS][name] = name, None
            continue
        for i in range(model.config.num_layers):
            items[f"{LAYERS}{i}"][name.removeprefix(LAYERS)] = name, i
    return items


def _read_layer(model: Model, source: WeightSource, name: str, layer: int | None) -> np.ndarray:
    """Read one layer of a stacked weight, or all of it if ``layer`` is None."""
    spec = model.stacked_specs[name]
    index = tuple(slice(0, size) for size in spec.shape)
    if layer is not None:
        index = slice(layer, layer + 1), *index[1:]
    out = np.empty([bounds.stop - bounds.start for bounds in index], spec.dtype)
    source.read(name, index, out)
    return out if layer is None else out[0]


def _form(model: Model, name: str, weight: np.ndarray) -> np.ndarray:
    """Return a layer of a stacked weight, or all of it, as a checkpoint has it."""
    if model.ops.packs_on_device:
        return weight
    packed: np.ndarray = model.pack(name, weight)
    return packed


@contextmanager
def _raise_unusable(path: Path) -> Iterator[None]:
    """Raise any error of json, tensorstore or zarr as an UnusableCheckpointError."""
    try:
        yield
    except Exception as error:
        raise UnusableCheckpointError(f"checkpoint {path}: {error!r}") from error


@contextmanager
def _without_orbax_warnings() -> Iterator[None]:
    """Silence Orbax, which warns at each save about the steps that its options switch off."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _signature(model: Model) -> dict[str, str]:
    specs = model.stacked_specs if model.ops.packs_on_device else model.specs
    return {name: f"{spec.dtype}{list(spec.shape)}" for name, spec in sorted(specs.items())}


def _files(path: Path) -> list[str]:
    """List all files of a checkpoint but its manifest."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST_FILE)
    return sorted(str(file.relative_to(path)) for file in files)


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> int:
    """Return the CRC-32 of a file."""
    digest, block = 0, memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while num := file.readinto(block):
            digest = zlib.crc32(block[:num], digest)
    return digest
