"""A model cut over several devices: tensor parallelism (Megatron-LM, arXiv 1909.08053).

    device 0   q0 | k0 | v0     o0            gate0 | up0    down0          pool: K0 V0 K1 V1
    device 1   q1 | k1 | v1     o1  --sum-->  gate1 | up1    down1 --sum--> pool: K2 V2 K3 V3

A device runs the code of the model as a smaller model, with its share of the heads and of the MLP
(``shard_of``), inside one ``shard_map`` over the whole step: nothing is moved but what the two sums
of a layer, the embeddings and the logits need. Columns of fused projections are laid out by device
(``column_runs``), so that a cut in equal parts gives each its q, k and v. The pool is cut by KV
heads, which stand in it as pairs; all else is on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvflow_jax.errors import ConfigError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XlaOps

AXIS = "shard"
WHOLE = PartitionSpec()
POOL = PartitionSpec(None, None, AXIS)  # [num_layers * num_pages, page_size, 2 * num_kv_heads, H]
BLOCKS = PartitionSpec(None, None, None, AXIS)  # what ``KVPool.gather`` gives

# End of a weight's name -> its axis that is cut, from the last. All others are whole everywhere.
CUT_AXES = {
    "qkv_proj.weight": -1,
    "qkv_proj.bias": -1,
    "gate_up_proj.weight": -1,
    "gate_up_proj.bias": -1,
    "o_proj.weight": -2,
    "down_proj.weight": -2,
    "embed.weight": -2,
    "lm_head.weight": -2,
}


def shard_of(config: ModelConfig, num_shards: int) -> ModelConfig:
    """What one device computes of a model; the vocabulary is cut by ``ShardedOps``.

    Raises:
        ConfigError: naming what cannot be cut in so many equal parts.
    """
    sizes: dict[str, Any] = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
    }
    if config.moe is not None:
        sizes["intermediate_size"] = config.moe.intermediate_size
    uneven = [
        f"{name} {size}"
        for name, size in (sizes | {"vocab_size": config.vocab_size}).items()
        if size % num_shards
    ]
    if uneven:
        raise ConfigError(f"{num_shards} devices cannot share {', '.join(uneven)} equally")
    shares = {name: size // num_shards for name, size in sizes.items()}
    if config.moe is not None:
        shares["moe"] = replace(config.moe, intermediate_size=shares.pop("intermediate_size"))
    return replace(config, **shares)


def weight_spec(name: str, num_axes: int) -> PartitionSpec:
    """How a weight lies on the devices: by its dotted name, stacked or of one layer."""
    for end, axis in CUT_AXES.items():
        if name.endswith(end):
            return PartitionSpec(*[AXIS if i == num_axes + axis else None for i in range(num_axes)])
    return WHOLE


def column_runs(
    name: str, width: int, config: ModelConfig, num_shards: int
) -> list[list[slice]] | None:
    """Of each device, the runs of a plain weight's columns that stand side by side in its part.

    None for all but fused projections: there the columns of a part are one run, or all.
    """
    if ".qkv_proj." in name:
        q, kv = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        ends = [0, q, q + kv, q + 2 * kv]
    elif ".gate_up_proj." in name:
        ends = [0, width // 2, width]
    else:
        return None
    return [
        [
            slice(start + (end - start) // num_shards * i, start + (end - start) // num_shards * j)
            for start, end in pairwise(ends)
        ]
        for i, j in pairwise(range(num_shards + 1))
    ]


def arranged(name: str, weight: jax.Array, config: ModelConfig, num_shards: int) -> jax.Array:
    """A plain weight [..., out] with the columns of fused projections grouped by device."""
    runs = column_runs(name, weight.shape[-1], config, num_shards)
    if runs is None:
        return weight
    return jnp.concatenate([weight[..., run] for own in runs for run in own], axis=-1)


@dataclass(frozen=True)
class ShardedOps(XlaOps):
    """One device's part of XLA's work, called inside a ``shard_map`` over ``AXIS``."""

    def all_reduce(self, part: jax.Array) -> jax.Array:
        return jax.lax.psum(part, AXIS)

    def lookup(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        own = rows - jax.lax.axis_index(AXIS) * table.shape[0]
        is_here = (own >= 0) & (own < table.shape[0])
        found = jnp.where(is_here[:, None], table.at[own].get(mode="clip"), 0)
        return jax.lax.psum(found, AXIS)

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        part = super().project(x, table, num_rows)
        return jax.lax.all_gather(part, AXIS, axis=1, tiled=True)


@dataclass(frozen=True)
class Shards:
    """The devices that share a model, in the order of its parts."""

    mesh: Mesh

    @classmethod
    def over(cls, num: int) -> Shards:
        """The first ``num`` devices there are, of all processes.

        Raises:
            ConfigError: there are not so many, or a process has none of them.
        """
        devices = jax.devices()
        if num > len(devices) and jax.process_count() > 1:
            counts = np.bincount([device.process_index for device in devices])
            raise ConfigError(
                f"tensor_parallel {num} needs as many devices, and the processes have "
                f"{' + '.join(map(str, counts))}; lower --tensor-parallel or start more processes"
            )
        if num > len(devices):
            what = f"tensor_parallel {num} needs as many devices, and there are {len(devices)}"
            if devices[0].platform == "cpu":
                flag = f"--xla_force_host_platform_device_count={num}"
                what += f"; a CPU counts as more with XLA_FLAGS={flag}"
            raise ConfigError(what)
        used = {device.process_index for device in devices[:num]}
        if unused := sorted(set(range(jax.process_count())) - used):
            raise ConfigError(
                f"tensor_parallel {num} leaves process {', '.join(map(str, unused))} without a "
                "device: raise --tensor-parallel or start fewer processes"
            )
        return cls(Mesh(np.array(devices[:num]), (AXIS,)))

    @property
    def num(self) -> int:
        return int(self.mesh.size)

    def where(self, spec: PartitionSpec = WHOLE) -> NamedSharding:
        """How an array lies on them."""
        return NamedSharding(self.mesh, spec)

    def part(self, model: Model) -> Model:
        """What one of them computes of a model whose ``ops`` are XLA's.

        Raises:
            ConfigError: it cannot be cut in so many equal parts.
        """
        assert isinstance(model.ops, XlaOps)
        ops = ShardedOps(model.ops.attention, model.ops.platform)
        return Model.build(shard_of(model.config, self.num), model.dtype, ops=ops)

    def weights(self, model: Model) -> dict[str, NamedSharding]:
        """How each weight lies on them."""
        return {
            name: self.where(weight_spec(name, len(spec.shape)))
            for name, spec in model.specs.items()
        }
