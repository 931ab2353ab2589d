"""Copies of an array's shards keep the values, the partitioning and the source."""

import jax
import numpy as np
import pytest

from kvflow_jax.cache.shard_copy import HOST, copy_shards


@pytest.fixture
def array():
    return jax.device_put(np.arange(12, dtype=np.float32).reshape(3, 4), jax.devices()[0])


def test_a_copy_is_in_host_memory_and_comes_back_bit_for_bit(array):
    on_host = copy_shards(array, to_host=True)
    assert on_host.sharding.memory_kind == HOST
    back = copy_shards(on_host, to_host=False)
    assert back.sharding.memory_kind == array.devices().pop().default_memory().kind
    np.testing.assert_array_equal(back, np.arange(12).reshape(3, 4))


def test_a_copy_outlives_its_source(array):
    on_host = copy_shards(array, to_host=True)
    array.delete()
    np.testing.assert_array_equal(on_host, np.arange(12).reshape(3, 4))


def test_a_copy_keeps_the_partitioning():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("tensor",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor"))
    on_host = copy_shards(jax.device_put(np.zeros(4, np.float32), sharding), to_host=True)
    assert on_host.sharding == sharding.with_memory_kind(HOST)
