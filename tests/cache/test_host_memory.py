"""Pinned host memory, held all at once and then left to the allocator."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from kvflow_jax.cache import host_memory
from kvflow_jax.cache.host_memory import pin_host_memory
from kvflow_jax.errors import CapacityError


@pytest.fixture
def copies(monkeypatch):
    """Small chunks; returns the bytes of each host copy."""
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", 1 << 10)
    sizes = []

    def copy_shards(array, *, to_host):
        assert to_host
        sizes.append(array.nbytes)
        return array

    monkeypatch.setattr(host_memory, "copy_shards", copy_shards)
    return sizes


@pytest.mark.parametrize("num_devices", [1, 3])
def test_every_byte_is_pinned(copies, num_devices):
    sharding = SingleDeviceSharding(jax.devices()[0])
    if num_devices > 1:
        if len(jax.devices()) < num_devices:
            pytest.skip("needs three devices")
        mesh = Mesh(np.array(jax.devices()[:num_devices]), ("tensor",))
        sharding = NamedSharding(mesh, PartitionSpec("tensor"))
    pin_host_memory(sharding, 5000)
    assert 5000 <= sum(copies) < 5000 + 2 * (1 << 10)


def test_a_tier_of_less_than_a_chunk_is_one_copy(copies):
    pin_host_memory(SingleDeviceSharding(jax.devices()[0]), 100)
    assert copies == [100]


def test_memory_that_the_driver_refuses_is_a_capacity_error(monkeypatch):
    def refuse(array, *, to_host):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(host_memory, "copy_shards", refuse)
    with pytest.raises(CapacityError, match=r"after 0 GiB the driver refused; .*--host-cache-gib"):
        pin_host_memory(SingleDeviceSharding(jax.devices()[0]), 1 << 20)
