"""Tensor parallelism: a model sharded over several devices (Megatron-LM, arXiv 1909.08053).

    device 0  q0 | k0 | v0  o0                   gate0 | up0  down0                   pool: K0 V0
    device 1  q1 | k1 | v1  o1  --all-reduce-->  gate1 | up1  down1  --all-reduce-->  pool: K1 V1

Each device runs the code of a smaller model, with its share of the heads and of the MLP
(``shard_of``), inside one ``shard_map`` over the whole step. Devices communicate only for the two
all-reduces of a layer (after the row-parallel ``o_proj`` and ``down_proj``), norms over all heads,
the embeddings and the logits. Columns of fused projections are grouped by device
(``column_slices``), so that an equal split gives each device its q, k and v. The pool is sharded by
KV heads, whose K and V are adjacent. All other arrays are replicated.
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
from kvflow_jax.models.quantised import Weight

AXIS = "shard"
REPLICATED = PartitionSpec()
POOL = PartitionSpec(None, None, AXIS)  # [num_layers * num_pages, page_size, 2 * num_kv_heads, H]
BLOCKS = PartitionSpec(None, None, None, AXIS)  # result of ``KVPool.gather``

# End of a weight's name -> its sharded axis, counted from the last. Other weights are replicated.
# The scales of an ``Int8Array`` are sharded as its values are: each device has those of its shard.
SHARDED_AXES = {
    "qkv_proj.weight": -1,
    "qkv_proj.bias": -1,
    "q_proj_norm.weight": -1,
    "k_proj_norm.weight": -1,
    "gate_up_proj.weight": -1,
    "gate_up_proj.bias": -1,
    "o_proj.weight": -2,
    "down_proj.weight": -2,
    "embed.weight": -2,
    "lm_head.weight": -2,
}


def shard_of(config: ModelConfig, num_shards: int) -> ModelConfig:
    """Return the config of one device's shard; ``ShardedOps`` shards the vocabulary.

    Raises:
        ConfigError: a size, named in the message, is no multiple of ``num_shards``.
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
    """Return the partition of a weight with this dotted name, stacked or of one layer."""
    for suffix, axis in SHARDED_AXES.items():
        if name.endswith(suffix):
            return PartitionSpec(*[AXIS if i == num_axes + axis else None for i in range(num_axes)])
    return REPLICATED


def column_slices(
    name: str, width: int, config: ModelConfig, num_shards: int
) -> list[list[slice]] | None:
    """Return, for each device, the column slices of a plain weight that make up its shard.

    None for weights that are no fused projection: the shard is one slice, or all columns.
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


def group_columns_by_device(
    name: str, weight: jax.Array, config: ModelConfig, num_shards: int
) -> jax.Array:
    """Return a plain weight [..., out] with the columns of fused projections grouped by device."""
    slices = column_slices(name, weight.shape[-1], config, num_shards)
    if slices is None:
        return weight
    return jnp.concatenate([weight[..., part] for shard in slices for part in shard], axis=-1)


@dataclass(frozen=True)
class ShardedOps(XlaOps):
    """Operations of one device's shard, called inside a ``shard_map`` over ``AXIS``."""

    def all_reduce(self, part: jax.Array) -> jax.Array:
        total: jax.Array = jax.lax.psum(part, AXIS)
        return total

    def lookup(self, table: Weight, rows: jax.Array, width: int) -> jax.Array:
        local = rows - jax.lax.axis_index(AXIS) * table.shape[0]
        is_local = (local >= 0) & (local < table.shape[0])
        found = super().lookup(table, local, width)
        return self.all_reduce(jnp.where(is_local[:, None], found, 0))

    def project(self, x: jax.Array, table: Weight, num_rows: int) -> jax.Array:
        part = super().project(x, table, num_rows)
        logits: jax.Array = jax.lax.all_gather(part, AXIS, axis=1, tiled=True)
        return logits


@dataclass(frozen=True)
class Shards:
    """The devices of a sharded model, in the order of their shards."""

    mesh: Mesh

    @classmethod
    def of_devices(cls, num: int) -> Shards:
        """Return shards on the first ``num`` devices of all processes.

        Raises:
            ConfigError: there are fewer devices, or a process has none of the first ``num``.
        """
        devices = jax.devices()
        if num > len(devices) and jax.process_count() > 1:
            counts = np.bincount([device.process_index for device in devices])
            raise ConfigError(
                f"tensor_parallel {num} needs as many devices, and the processes have "
                f"{' + '.join(map(str, counts))}; lower --tensor-parallel or start more processes"
            )
        if num > len(devices):
            message = f"tensor_parallel {num} needs as many devices, and there are {len(devices)}"
            if devices[0].platform == "cpu":
                flag = f"--xla_force_host_platform_device_count={num}"
                message += f"; a CPU counts as more with XLA_FLAGS={flag}"
            raise ConfigError(message)
        used = {device.process_index for device in devices[:num]}
        if unused := sorted(set(range(jax.process_count())) - used):
            raise ConfigError(
                f"tensor_parallel {num} leaves process {', '.join(map(str, unused))} without a "
                "device: raise --tensor-parallel or start fewer processes"
            )
        return cls(Mesh(np.array(devices[:num]), (AXIS,)))

    @property
    def num_shards(self) -> int:
        """Number of devices."""
        return int(self.mesh.size)

    def sharding(self, spec: PartitionSpec = REPLICATED) -> NamedSharding:
        """Return the sharding of an array over the devices."""
        return NamedSharding(self.mesh, spec)

    def local_model(self, model: Model) -> Model:
        """Return one device's shard of a model whose ``ops`` are ``XlaOps``.

        Raises:
            ConfigError: a size of the model is no multiple of the number of shards.
        """
        assert isinstance(model.ops, XlaOps)
        ops = ShardedOps(model.ops.attention, model.ops.platform, model.ops.quantize)
        return Model.build(shard_of(model.config, self.num_shards), model.dtype, ops=ops)

    def weight_shardings(self, model: Model) -> dict[str, NamedSharding]:
        """Return the sharding of each weight in ``model.specs``, by name."""
        return {
            name: self.sharding(weight_spec(name, len(spec.shape)))
            for name, spec in model.specs.items()
        }
