"""Weights in a folder of Orbax checkpoints, one a layer, read a part at a time.

Orbax writes them, as Zarr arrays; TensorStore, which it does that with, reads of each array the
chunks that a device needs, straight into their place. Files are checked before they are read.
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

FORMAT = 4  # raise it when names, shapes, places or meaning of weights change
CHUNK_BYTES = 16 << 20  # chunks are read in parallel
COMPLETE_FILE = "complete.json"  # holds what a restore must find
WEIGHTS, ENDS = "weights", "ends"

_READ_BYTES = 1 << 20


class TornCheckpointError(ModelLoadError):
    """What was kept is not, or no longer, what was written: another version, a kill, a bad disk."""


class KeptWeights:
    """The weights of a checkpoint.

    Raises:
        TornCheckpointError: when it is opened, or later when a part is read.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self._path = path
        with _torn_if_it_fails(path):
            complete = json.loads((path / COMPLETE_FILE).read_text())
            if complete["weights"] != (expected := _signature(model)):
                raise ValueError(f"expected {expected}, found {complete['weights']}")
            sizes = {name: size for name, (size, _) in complete["files"].items()}
            if sizes != (found := {name: _size(path / name) for name in _files(path)}):
                torn = {name for name, _ in sizes.items() ^ found.items()}
                raise ValueError(f"missing or of the wrong size: {', '.join(sorted(torn))}")
            self._unchecked = {name: digest for name, (_, digest) in complete["files"].items()}
            self._check([name for name in sizes if not name.startswith(f"{WEIGHTS}/")])

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        parts = [(f"{ENDS}/{name}", index, out)]
        if name.startswith(LAYERS):
            layers, *rest = index
            parts = [
                (f"{LAYERS}{i}/{name.removeprefix(LAYERS)}", tuple(rest), out[i - layers.start])
                for i in range(layers.start, layers.stop)
            ]
        with _torn_if_it_fails(self._path):
            reading = [self._start(*part) for part in parts]
            for one in reading:
                one.result()

    def finish(self) -> None:
        """What is wrong is told when it is read."""

    def _start(self, name: str, index: Index, out: np.ndarray) -> Any:
        """A future of a part of one array."""
        import tensorstore

        place = f"{WEIGHTS}/{name}"
        self._check([f"{place}/.zarray"])
        store = {"driver": "file", "path": str(self._path / place)}
        array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
        chunks = array.spec().to_json()["metadata"]["chunks"]
        touched = [
            range(one.start // size, -(-one.stop // size))
            for one, size in zip(index, chunks, strict=True)
        ]
        self._check(f"{place}/{'.'.join(map(str, at))}" for at in product(*touched))
        return tensorstore.array(out).write(array[index])

    def _check(self, files: Iterable[str]) -> None:
        """What is in these files is what was written, or they are read a second time."""
        for name in files:
            digest = self._unchecked.pop(name, None)  # chunks of zeros have no file
            if digest is not None and digest != _digest(self._path / name):
                raise ValueError(f"{name} holds something else than was written")


def write_weights(path: Path, model: Model, source: WeightSource, *, progress: bool) -> None:
    """Convert weights layer by layer: no more of them is in memory at once.

    Raises:
        ModelLoadError: listing what was found wrong while reading.
    """
    import orbax.checkpoint as ocp
    from tqdm import tqdm

    items = _items(model)
    with checkpointer() as orbax, _without_its_warnings():
        for item, names in tqdm(items.items(), desc="Converting", disable=not progress):
            weights = {
                name: _layer_of(model, source, stacked, layer)
                for name, (stacked, layer) in names.items()
            }
            chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in weights}
            orbax.save(path / WEIGHTS / item, args=ocp.args.PyTreeSave(weights, save_args=chunked))
    source.finish()


def seal(path: Path, model: Model) -> None:
    """Note what has been written, once it is on the disk: it may lose power later."""
    files = {name: (_size(path / name), _digest(path / name)) for name in _files(path)}
    complete = {"weights": _signature(model), "files": files}
    (path / COMPLETE_FILE).write_text(json.dumps(complete))
    for one in [*path.rglob("*"), path]:
        sync(one)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def checkpointer() -> Any:
    """Orbax, set to how checkpoints are written."""
    import orbax.checkpoint as ocp

    # Processes that share a model keep a checkpoint each, by themselves: they may start with
    # another's, or on a machine that has none.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process-{jax.process_index()}",
    )
    # One process, few large arrays: plain files restore faster than the OCDBT store, and packing
    # float32 weights takes ten times as long as writing them.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, multiprocessing_options=alone
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _items(model: Model) -> dict[str, dict[str, tuple[str, int | None]]]:
    """Of every Orbax checkpoint, its arrays: the stacked weight and the layer that each is."""
    items: dict[str, dict[str, tuple[str, int | None]]] = {ENDS: {}}
    items |= {f"{LAYERS}{i}": {} for i in range(model.config.num_layers)}
    for name in model.stacked_specs:
        if not name.startswith(LAYERS):
            items[ENDS][name] = name, None
            continue
        for i in range(model.config.num_layers):
            items[f"{LAYERS}{i}"][name.removeprefix(LAYERS)] = name, i
    return items


def _layer_of(model: Model, source: WeightSource, name: str, layer: int | None) -> np.ndarray:
    """A weight, whole or of one layer."""
    spec = model.stacked_specs[name]
    index = tuple(slice(0, size) for size in spec.shape)
    if layer is not None:
        index = slice(layer, layer + 1), *index[1:]
    out = np.empty([one.stop - one.start for one in index], spec.dtype)
    source.read(name, index, out)
    return out if layer is None else out[0]


@contextmanager
def _torn_if_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # json, tensorstore and zarr each raise their own
        raise TornCheckpointError(f"checkpoint {path}: {error!r}") from error


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """Orbax warns at each save of what it skips because it was told to."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _signature(model: Model) -> dict[str, str]:
    specs = sorted(model.stacked_specs.items())
    return {name: f"{spec.dtype}{list(spec.shape)}" for name, spec in specs}


def _files(path: Path) -> list[str]:
    """All but the one that lists them."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != COMPLETE_FILE)
    return sorted(str(file.relative_to(path)) for file in files)


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> int:
    digest, block = 0, memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while num := file.readinto(block):
            digest = zlib.crc32(block[:num], digest)
    return digest
