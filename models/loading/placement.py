"""Places weights on devices, one slice at a time, straight from their source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from kvflow_jax.models.loading.weights import Index, WeightSource
from kvflow_jax.models.memory import Device, aligned_empty
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.quantised import Weight
from kvflow_jax.models.sharding import Shards, column_slices

# Bytes of host memory that stage a transfer to a device with discrete memory; at least one layer.
STAGING_BYTES = 64 << 20


def place(
    model: Model,
    source: WeightSource,
    shards: Shards | None = None,
    *,
    progress: bool = False,
    discrete_memory: bool | None = None,
) -> Params:
    """Read weights onto the default device, or the shards of this process's devices.

    A CPU device uses the host memory that the weights are read into. A device with discrete memory
    receives them in chunks of at most ``STAGING_BYTES``; the host frees each after its transfer.

    Args:
        shards: the devices that share the model; None places all of it on the default device.
        discrete_memory: whether devices have memory separate from the host's; None: all but CPUs.

    Raises:
        ModelLoadError: listing every problem found while reading.
    """
    from tqdm import tqdm

    if discrete_memory is None:
        discrete_memory = jax.default_backend() != "cpu"
    leaves = list(_leaves(model, shards))
    num_weights = sum(part.size for leaf in leaves for part in leaf.slices)
    with tqdm(total=num_weights, unit=" weights", unit_scale=True, disable=not progress) as bar:
        placer = _Placer(model, source, discrete_memory, bar)
        params = {leaf.name: placer.place(leaf) for leaf in leaves}
    source.raise_problems()
    return params


@dataclass(frozen=True)
class _DeviceSlice:
    """The slice of a stacked weight that a device, or several replicas, holds.

    Attributes:
        rows: index of all axes but the last.
        columns: ranges of the last axis, concatenated on the device.
        devices: the replicas; None is the default device.
    """

    rows: Index
    columns: list[slice]
    devices: list[Device | None]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*map(_len, self.rows), sum(map(_len, self.columns)))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def chunks(self, itemsize: int) -> Iterator[_DeviceSlice]:
        """Cut along the first axis into chunks of at most ``STAGING_BYTES``, at least one row."""
        if not self.rows:
            yield self
            return
        first, *rest = self.rows
        step = max(1, STAGING_BYTES * _len(first) // max(self.size * itemsize, 1))
        for start in range(first.start, first.stop, step):
            yield replace(self, rows=(slice(start, min(start + step, first.stop)), *rest))


@dataclass(frozen=True)
class _Leaf:
    """An entry of ``Params``: a stacked weight, or one layer of it.

    Attributes:
        layer: None for all of the stacked weight.
        spec: global shape and dtype, before ``Model.pack``.
        slices: those of this process's devices.
        sharding: over several devices; None is the default device.
    """

    name: str
    stacked_name: str
    layer: int | None
    spec: jax.ShapeDtypeStruct
    slices: list[_DeviceSlice]
    sharding: NamedSharding | None


@dataclass(frozen=True)
class _Placer:
    """Places one leaf at a time; ``bar`` (tqdm) counts the weights read."""

    model: Model
    source: WeightSource
    discrete_memory: bool
    bar: Any

    def place(self, leaf: _Leaf) -> Weight:
        if self.source.is_packed:
            return self._place_packed(leaf)
        chunks = [list(part.chunks(leaf.spec.dtype.itemsize)) for part in leaf.slices]
        if self.discrete_memory and leaf.layer is None and len(chunks[0]) > 1:
            placed = self._place_in_chunks(leaf, chunks)
        else:
            placed = self._place_step(leaf, leaf.slices)
        if leaf.sharding is None:
            return placed[0]
        weight: Weight = jax.tree.map(partial(_global_array, leaf.sharding), *placed)
        return weight

    def _place_packed(self, leaf: _Leaf) -> Weight:
        """Place all of a leaf on the default device."""
        (part,) = leaf.slices
        spec = self.model.specs[leaf.name]
        out = aligned_empty(spec.shape, np.dtype(spec.dtype))
        index = tuple(slice(0, size) for size in spec.shape)
        if leaf.layer is None:
            self.source.read(leaf.stacked_name, index, out)
        else:
            layer = slice(leaf.layer, leaf.layer + 1)
            self.source.read(leaf.stacked_name, (layer, *index), out[None])
        self.bar.update(part.size)
        placed: Weight = jax.block_until_ready(
            jax.device_put(out, may_alias=not self.discrete_memory)
        )
        return placed

    def _place_step(self, leaf: _Leaf, parts: Iterable[_DeviceSlice]) -> list[Weight]:
        """Place slices, or chunks of them, one after the other, each with one transfer a device."""
        return [
            weight for part in parts for weight in self._put(leaf, self._read(leaf, part), part)
        ]

    def _place_in_chunks(self, leaf: _Leaf, chunks: list[list[_DeviceSlice]]) -> list[Weight]:
        """Place the slices of all devices chunk by chunk, in step.

        The slices have the same shape. Devices share tensors: in step, each is read from disk once.
        """
        weights = [
            self._zeros(leaf, part, device) for part in leaf.slices for device in part.devices
        ]
        first_row = 0
        for step in zip(*chunks, strict=True):
            weights = [
                _write_rows(weight, rows, np.int32(first_row))
                for weight, rows in zip(weights, self._place_step(leaf, step), strict=True)
            ]
            first_row += step[0].shape[0]
        return weights

    def _zeros(self, leaf: _Leaf, part: _DeviceSlice, device: Device | None) -> Weight:
        """Allocate the packed form of a slice."""
        plain = jax.ShapeDtypeStruct(part.shape, leaf.spec.dtype)
        packed = jax.eval_shape(partial(self.model.pack, leaf.stacked_name), plain)
        zeros: Weight = jax.tree.map(
            lambda spec: jnp.zeros(spec.shape, spec.dtype, device=device), packed
        )
        return zeros

    def _read(self, leaf: _Leaf, part: _DeviceSlice) -> np.ndarray:
        out, start = aligned_empty(part.shape, np.dtype(leaf.spec.dtype)), 0
        for columns in part.columns:
            stop = start + _len(columns)
            self.source.read(leaf.stacked_name, (*part.rows, columns), out[..., start:stop])
            start = stop
        self.bar.update(part.size)
        return out

    def _put(self, leaf: _Leaf, weight: np.ndarray, part: _DeviceSlice) -> list[Weight]:
        """Pack a slice, or a chunk of it, and send it to its devices, in the order of the ops."""
        pack = partial(self.model.pack, leaf.stacked_name)
        weight = weight if leaf.layer is None else weight[0]
        packs_on_device = self.model.ops.packs_on_device
        sent = weight if packs_on_device else pack(weight)
        put = partial(jax.device_put, sent, may_alias=not self.discrete_memory)
        weights = [put(device) for device in part.devices]
        if packs_on_device:
            weights = [pack(array) for array in weights]
        # Transfers and packing read the host's array, which is freed afterwards.
        placed: list[Weight] = jax.block_until_ready(weights)
        return placed


@partial(jax.jit, donate_argnums=0)
def _write_rows(weight: Weight, rows: Weight, first_row: np.int32) -> Weight:
    def write(array: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(array, rows, first_row, axis=0)

    written: Weight = jax.tree.map(write, weight, rows)
    return written


def _global_array(sharding: NamedSharding, *shards: jax.Array) -> jax.Array:
    """Return the array of which this process's devices have these shards."""
    axes = (*sharding.spec, *[None] * shards[0].ndim)
    shape = tuple(
        size * (1 if axis is None else sharding.mesh.size)
        for size, axis in zip(shards[0].shape, axes, strict=False)
    )
    return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))


def _leaves(model: Model, shards: Shards | None) -> Iterator[_Leaf]:
    """Yield every leaf of the model with the slices that this process reads."""
    shardings = {} if shards is None else shards.weight_shardings(model)
    for stacked_name, stacked_spec in model.stacked_specs.items():
        for name, layer in model.leaves(stacked_name):
            spec, layer_index = stacked_spec, Index()
            if layer is not None:
                spec = jax.ShapeDtypeStruct(stacked_spec.shape[1:], stacked_spec.dtype)
                layer_index = (slice(layer, layer + 1),)
            if shards is None:
                *rows, columns = (slice(0, size) for size in spec.shape)
                slices = [_DeviceSlice((*layer_index, *rows), [columns], [None])]
            else:
                slices = [
                    replace(part, rows=(*layer_index, *part.rows))
                    for part in _slices(model, name, spec, shards.num_shards, shardings[name])
                ]
            yield _Leaf(name, stacked_name, layer, spec, slices, shardings.get(name))


def _slices(
    model: Model, name: str, spec: jax.ShapeDtypeStruct, num_shards: int, sharding: NamedSharding
) -> Iterator[_DeviceSlice]:
    """Yield the slices that this process's devices hold of a leaf; replicas share one."""
    replicas: dict[tuple[tuple[int, int], ...], list[Device | None]] = {}
    for device, index in sharding.addressable_devices_indices_map(spec.shape).items():
        # None only for devices of other processes.
        assert index is not None
        axes = zip(index, spec.shape, strict=True)
        bounds = tuple(axis_index.indices(size)[:2] for axis_index, size in axes)
        replicas.setdefault(bounds, []).append(device)
    fused_columns = column_slices(name, spec.shape[-1], model.config, num_shards)
    for bounds, devices in replicas.items():
        *rows, columns = (slice(*start_stop) for start_stop in bounds)
        device_columns = [columns]
        if fused_columns:
            device_columns = fused_columns[columns.start * num_shards // spec.shape[-1]]
        yield _DeviceSlice(tuple(rows), device_columns, devices)


def _len(bounds: slice) -> int:
    return int(bounds.stop - bounds.start)
