"""Arrays of which several processes hold shards: each copies its own."""

from __future__ import annotations

import jax
from jax.sharding import SingleDeviceSharding

HOST = "pinned_host"


def copy_shards(array: jax.Array, *, to_host: bool) -> jax.Array:
    """A copy, in host memory or on the devices, of the shards that this process has.

    ``device_put`` of the whole would be a program of all processes, in whose order copies would
    have to come. A process's own shards are nobody else's business.
    """
    shards = array.addressable_shards
    kind = HOST if to_host else shards[0].device.default_memory().kind
    shards = [
        jax.device_put(
            shard.data, SingleDeviceSharding(shard.device, memory_kind=kind), may_alias=False
        )
        for shard in shards
    ]
    there = array.sharding.with_memory_kind(kind)
    return jax.make_array_from_single_device_arrays(array.shape, there, shards)
