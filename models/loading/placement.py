"""Weights put where they are to lie, a part of one at a time, straight from their source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from kvflow_jax.models.loading.weights import Index, WeightSource
from kvflow_jax.models.memory import aligned_empty
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.sharding import Shards, column_runs

PIECE_BYTES = 64 << 20  # of host memory, or one layer, on the way to a device with its own


def place(
    model: Model,
    source: WeightSource,
    shards: Shards | None = None,
    *,
    progress: bool = False,
    in_copies: bool | None = None,
) -> Params:
    """Read weights onto the default device, or what this process's devices hold of them.

    A CPU device uses the memory that they are read into. One with memory of its own is sent them
    in pieces, each of which the host then forgets.

    Args:
        in_copies: whether devices have memory of their own; None: all but CPUs have.

    Raises:
        ModelLoadError: listing what was found wrong while reading.
    """
    from tqdm import tqdm

    in_copies = jax.default_backend() != "cpu" if in_copies is None else in_copies
    leaves = list(_leaves(model, shards))
    num_weights = sum(part.size for leaf in leaves for part in leaf.parts)
    with tqdm(total=num_weights, unit=" weights", unit_scale=True, disable=not progress) as bar:
        placing = _Placing(model, source, in_copies, bar)
        params = {leaf.name: placing.place(leaf) for leaf in leaves}
    source.finish()
    return params


@dataclass(frozen=True)
class _Part:
    """What a device, or several alike, hold of a stacked weight.

    Attributes:
        rows: of all axes but the last.
        columns: runs of the last, which stand side by side.
        devices: None is the default one.
    """

    rows: Index
    columns: list[slice]
    devices: list[jax.Device | None]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*map(_len, self.rows), sum(map(_len, self.columns)))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def pieces(self, itemsize: int) -> Iterator[_Part]:
        """Runs of its first axis of at most ``PIECE_BYTES``, if one index has no more."""
        if not self.rows:
            yield self
            return
        first, *rest = self.rows
        step = max(1, PIECE_BYTES * _len(first) // max(self.size * itemsize, 1))
        for at in range(first.start, first.stop, step):
            yield replace(self, rows=(slice(at, min(at + step, first.stop)), *rest))


@dataclass(frozen=True)
class _Leaf:
    """An entry of ``params``: a stacked weight, or one layer of it.

    Attributes:
        lies: how it lies on several devices; None: on the default one.
    """

    name: str
    stacked: str
    layer: int | None
    spec: jax.ShapeDtypeStruct
    parts: list[_Part]
    lies: NamedSharding | None


@dataclass(frozen=True)
class _Placing:
    """See ``place``; ``bar`` shows how many weights were read."""

    model: Model
    source: WeightSource
    in_copies: bool
    bar: Any

    def place(self, leaf: _Leaf) -> jax.Array:
        pieces = [list(part.pieces(leaf.spec.dtype.itemsize)) for part in leaf.parts]
        if self.in_copies and leaf.layer is None and len(pieces[0]) > 1:
            arrays = self._in_pieces(leaf, pieces)
        else:
            arrays = [array for part in leaf.parts for array in self._at_once(leaf, part)]
        if leaf.lies is None:
            return arrays[0]
        return jax.make_array_from_single_device_arrays(leaf.spec.shape, leaf.lies, arrays)

    def _at_once(self, leaf: _Leaf, part: _Part) -> list[jax.Array]:
        """A part on each of its devices."""
        weight = self._read(leaf, part)
        weight = self.model.pack(leaf.stacked, weight if leaf.layer is None else weight[0])
        return self._put(weight, part)

    def _in_pieces(self, leaf: _Leaf, pieces: list[list[_Part]]) -> list[jax.Array]:
        """All parts, which are alike, piece by piece: devices share tensors, read once then."""
        arrays = [
            jnp.zeros(part.shape, leaf.spec.dtype, device=device)
            for part in leaf.parts
            for device in part.devices
        ]
        first = 0
        for of_parts in zip(*pieces, strict=True):
            sent = [one for piece in of_parts for one in self._put(self._read(leaf, piece), piece)]
            arrays = [_lay(*both, np.int32(first)) for both in zip(arrays, sent, strict=True)]
            first += of_parts[0].shape[0]
        return arrays

    def _read(self, leaf: _Leaf, part: _Part) -> np.ndarray:
        out, at = aligned_empty(part.shape, np.dtype(leaf.spec.dtype)), 0
        for run in part.columns:
            self.source.read(leaf.stacked, (*part.rows, run), out[..., at : at + _len(run)])
            at += _len(run)
        self.bar.update(part.size)
        return out

    def _put(self, weight: np.ndarray, part: _Part) -> list[jax.Array]:
        may_alias = not self.in_copies
        arrays = [jax.device_put(weight, one, may_alias=may_alias) for one in part.devices]
        if self.in_copies:
            jax.block_until_ready(arrays)  # until then the host has to keep its own
        return arrays


@partial(jax.jit, donate_argnums=0)
def _lay(array: jax.Array, piece: jax.Array, first: np.int32) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, piece, first, axis=0)


def _leaves(model: Model, shards: Shards | None) -> Iterator[_Leaf]:
    """All there is to place, in parts that this process reads."""
    lies = {} if shards is None else shards.weights(model)
    for stacked, spec in model.stacked_specs.items():
        for name, layer in model.leaves(stacked):
            own, of_layer = spec, Index()
            if layer is not None:
                own = jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
                of_layer = (slice(layer, layer + 1),)
            if shards is None:
                *rows, columns = (slice(0, size) for size in own.shape)
                parts = [_Part((*of_layer, *rows), [columns], [None])]
            else:
                parts = [
                    replace(part, rows=(*of_layer, *part.rows))
                    for part in _parts(model, name, own, shards.num, lies[name])
                ]
            yield _Leaf(name, stacked, layer, own, parts, lies.get(name))


def _parts(
    model: Model, name: str, spec: jax.ShapeDtypeStruct, num_shards: int, lies: NamedSharding
) -> Iterator[_Part]:
    """What this process's devices hold of a weight, those with the same once."""
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device | None]] = {}
    for device, index in lies.addressable_devices_indices_map(spec.shape).items():
        assert index is not None  # as of devices of other processes
        sizes = zip(index, spec.shape, strict=True)
        bounds = tuple(one.indices(size)[:2] for one, size in sizes)
        holders.setdefault(bounds, []).append(device)
    runs = column_runs(name, spec.shape[-1], model.config, num_shards)
    for bounds, devices in holders.items():
        *rows, columns = (slice(*one) for one in bounds)
        own = runs[columns.start * num_shards // spec.shape[-1]] if runs else [columns]
        yield _Part(tuple(rows), own, devices)


def _len(one: slice) -> int:
    return int(one.stop - one.start)
