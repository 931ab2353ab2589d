"""Host memory of the host tier, pinned before the first request."""

from __future__ import annotations

import logging
import time

import jax
import jax.numpy as jnp

from kvflow_jax.cache.shard_copy import copy_shards
from kvflow_jax.errors import CapacityError

log = logging.getLogger(__name__)

GIB = 1 << 30
CHUNK_BYTES = 256 << 20


def pin_host_memory(block_sharding: jax.sharding.Sharding, nbytes: int) -> None:
    """Let the device's allocator of pinned host memory grow to ``nbytes`` now, and keep them.

    It grows in steps that double, and the driver pins the pages of a step one by one: seconds for a
    few GiB, which the offload that needs them would wait for.

    Args:
        block_sharding: sharding of an array of one axis; each process pins its own devices' share.
        nbytes: of all devices.

    Raises:
        CapacityError: the driver refuses the memory.
    """
    log.info("pinning %.3g GiB of host memory; --host-cache-gib sets how much", nbytes / GIB)
    start = time.perf_counter()
    num_devices = len(block_sharding.device_set)
    size = -(-min(CHUNK_BYTES, nbytes) // num_devices) * num_devices
    zeros = jax.jit(lambda: jnp.zeros(size, jnp.uint8), out_shardings=block_sharding)()
    held: list[jax.Array] = []
    try:
        for _ in range(-(-nbytes // size)):
            held.append(jax.block_until_ready(copy_shards(zeros, to_host=True)))
    except jax.errors.JaxRuntimeError as error:
        raise CapacityError(
            f"a host tier of {nbytes / GIB:.3g} GiB cannot be pinned: after "
            f"{len(held) * size / GIB:.3g} GiB the driver refused; lower host_cache_gib "
            "(--host-cache-gib)"
        ) from error
    log.info("pinned in %.1f s", time.perf_counter() - start)
