"""Copies of sharded arrays between device and host, each process copying its own shards."""

from __future__ import annotations

import jax
from jax.sharding import SingleDeviceSharding

HOST = "pinned_host"


def copy_shards(array: jax.Array, *, to_host: bool) -> jax.Array:
    """Copy the shards that this process addresses to pinned host memory, or to their devices.

    ``device_put`` of the whole array would be a program of all processes, which would have to
    issue their copies in the same order. A copy of a process's own shards needs no coordination.

    Returns:
        An array of the same shape and partitioning, in the other memory.
    """
    shards = array.addressable_shards
    kind = HOST if to_host else shards[0].device.default_memory().kind
    copies = [
        jax.device_put(
            shard.data, SingleDeviceSharding(shard.device, memory_kind=kind), may_alias=False
        )
        for shard in shards
    ]
    sharding = array.sharding.with_memory_kind(kind)
    return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)
