"""Copies between device and host: bits, order, pace, failures. Lanes are driven by events."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache import transfer as module
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.cache.transfer import DeviceTransfers, Direction, Transfer, measure_bandwidth

RATES = dict.fromkeys(Direction, 1e9)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def lanes():
    lanes = DeviceTransfers(HERE, RATES)
    yield lanes
    lanes.close()


class Landing:
    """Waits for transfers by the event that the lanes set."""

    def __init__(self, lanes):
        self.lanes, self.event, self.done = lanes, threading.Event(), []
        lanes.listen(self.event.set)

    def wait(self, count):
        while len(self.done) < count:
            assert self.event.wait(30)
            self.event.clear()
            self.done += self.lanes.poll()
        return self.done


def send(lanes, way, data):
    transfer = Transfer(way, None, data, data.nbytes, 0.0)
    lanes.submit(transfer)
    return transfer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_blocks_come_back_bit_for_bit(lanes, dtype):
    spec = PoolSpec(3, 9, 4, 2, 8, dtype)
    bits = np.random.default_rng(0).standard_normal(KVPool.zeros(spec).data.shape)
    pool = KVPool(jnp.asarray(bits, jnp.dtype(dtype)), spec)
    original = np.asarray(pool.data)
    slots = np.array([5, 2, 7], np.int32)
    landing = Landing(lanes)
    send(lanes, Direction.OFFLOAD, pool.gather(slots))
    saved = landing.wait(1)[0].data
    assert saved.sharding.memory_kind == "pinned_host"
    send(lanes, Direction.LOAD, saved)
    loaded = landing.wait(2)[1].data
    assert loaded.sharding.memory_kind != "pinned_host"
    # Into other slots; one of them not wanted any more.
    back = KVPool.zeros(spec).scatter(np.array([1, spec.num_pages, 3], np.int32), loaded)
    pages = np.asarray(back.data).reshape(3, 9, 4, 4, 8)
    before = original.reshape(3, 9, 4, 4, 8)
    np.testing.assert_array_equal(pages[:, 1], before[:, 5])
    np.testing.assert_array_equal(pages[:, 3], before[:, 7])
    assert not pages[:, [0, 2, 4, 5, 6, 7, 8]].any()


def test_a_direction_keeps_its_order_and_the_other_does_not_wait(lanes):
    landing = Landing(lanes)
    there = [send(lanes, Direction.OFFLOAD, jnp.full(1000, i)) for i in range(10)]
    back = [send(lanes, Direction.LOAD, jnp.full(1000, i)) for i in range(10)]
    done = landing.wait(20)
    assert [one for one in done if one.direction is Direction.OFFLOAD] == there
    assert [one for one in done if one.direction is Direction.LOAD] == back
    assert all(one.is_issued.is_set() and one.finished_s >= one.started_s for one in done)


def test_a_copy_that_fails_is_reported_and_the_next_is_made(lanes, monkeypatch):
    landing = Landing(lanes)
    device_put = jax.device_put

    def refuse(data, *args, **kwargs):
        if data.shape == (3,):
            raise MemoryError("no pinned memory")
        return device_put(data, *args, **kwargs)

    monkeypatch.setattr(module.jax, "device_put", refuse)
    send(lanes, Direction.OFFLOAD, jnp.zeros(3))
    send(lanes, Direction.OFFLOAD, jnp.ones(4))
    failed, made = landing.wait(2)
    assert isinstance(failed.error, MemoryError)
    assert failed.data is None
    assert failed.is_issued.is_set()
    assert made.error is None
    np.testing.assert_array_equal(made.data, np.ones(4))


def test_an_emulated_link_takes_its_time():
    lanes = DeviceTransfers(HERE, RATES, pace_s_per_byte=1e-5)
    assert lanes.bytes_per_s == dict.fromkeys(Direction, pytest.approx(1e5))
    landing = Landing(lanes)
    for _ in range(2):
        send(lanes, Direction.LOAD, jnp.zeros(250))
    first, second = landing.wait(2)
    lanes.close()
    assert first.finished_s - first.started_s >= 0.0099
    assert second.started_s >= first.finished_s  # one link: one after the other
    assert second.finished_s - second.started_s >= 0.0099


def test_the_link_is_measured_both_ways():
    rates = measure_bandwidth(HERE, 1 << 20, repeats=1)
    assert set(rates) == set(Direction)
    assert all(rate > 0 for rate in rates.values())
