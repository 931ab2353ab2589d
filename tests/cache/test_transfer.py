"""Copies between device and host: bits, order, pace and failures. Tests wait for events."""

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache import transfer as module
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.cache.transfer import DeviceTransfers, Direction, Transfer, measure_bandwidth

RATES = dict.fromkeys(Direction, 1e9)
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def transfers():
    transfers = DeviceTransfers(SHARDING, RATES)
    yield transfers
    transfers.close()


class Completions:
    """Collects finished transfers, waiting for the event that the workers set."""

    def __init__(self, transfers):
        self.transfers, self.event, self.done = transfers, threading.Event(), []
        transfers.listen(self.event.set)

    def wait(self, count):
        while len(self.done) < count:
            assert self.event.wait(30)
            self.event.clear()
            self.done += self.transfers.poll()
        return self.done


def submit(transfers, direction, data):
    transfer = Transfer(direction, None, data, data.nbytes, 0.0)
    transfers.submit(transfer)
    return transfer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_blocks_come_back_bit_for_bit(transfers, dtype):
    spec = PoolSpec(3, 9, 4, 2, 8, dtype)
    bits = np.random.default_rng(0).standard_normal(KVPool.zeros(spec).data.shape)
    pool = KVPool(jnp.asarray(bits, jnp.dtype(dtype)), spec)
    original = np.asarray(pool.data)
    pages = np.array([5, 2, 7], np.int32)
    completions = Completions(transfers)
    submit(transfers, Direction.OFFLOAD, pool.gather(pages))
    offloaded = completions.wait(1)[0].data
    assert offloaded.sharding.memory_kind == "pinned_host"
    submit(transfers, Direction.LOAD, offloaded)
    loaded = completions.wait(2)[1].data
    assert loaded.sharding.memory_kind != "pinned_host"
    # To other pages. The second block is not wanted any more.
    back = KVPool.zeros(spec).scatter(np.array([1, spec.num_pages, 3], np.int32), loaded)
    restored = np.asarray(back.data).reshape(3, 9, 4, 4, 8)
    before = original.reshape(3, 9, 4, 4, 8)
    np.testing.assert_array_equal(restored[:, 1], before[:, 5])
    np.testing.assert_array_equal(restored[:, 3], before[:, 7])
    assert not restored[:, [0, 2, 4, 5, 6, 7, 8]].any()


def test_each_direction_keeps_its_order_beside_the_other(transfers):
    completions = Completions(transfers)
    offloads = [submit(transfers, Direction.OFFLOAD, jnp.full(1000, i)) for i in range(10)]
    loads = [submit(transfers, Direction.LOAD, jnp.full(1000, i)) for i in range(10)]
    done = completions.wait(20)
    assert [transfer for transfer in done if transfer.direction is Direction.OFFLOAD] == offloads
    assert [transfer for transfer in done if transfer.direction is Direction.LOAD] == loads
    assert all(transfer.is_issued.is_set() for transfer in done)
    assert all(transfer.finished_s >= transfer.started_s for transfer in done)


def test_a_failed_copy_is_reported_and_the_next_one_is_made(transfers, monkeypatch):
    completions = Completions(transfers)
    device_put = jax.device_put

    def refuse(data, *args, **kwargs):
        if data.shape == (3,):
            raise MemoryError("no pinned memory")
        return device_put(data, *args, **kwargs)

    monkeypatch.setattr(module.jax, "device_put", refuse)
    submit(transfers, Direction.OFFLOAD, jnp.zeros(3))
    submit(transfers, Direction.OFFLOAD, jnp.ones(4))
    failed, made = completions.wait(2)
    assert isinstance(failed.error, MemoryError)
    assert failed.data is None
    assert failed.is_issued.is_set()
    assert made.error is None
    np.testing.assert_array_equal(made.data, np.ones(4))


def test_a_cancelled_transfer_is_not_copied(transfers):
    completions = Completions(transfers)
    cancelled = Transfer(Direction.LOAD, None, jnp.zeros(3), 12, 0.0, is_cancelled=True)
    transfers.submit(cancelled)
    assert completions.wait(1) == [cancelled]
    assert cancelled.data is None
    assert cancelled.error is None
    assert cancelled.is_issued.is_set()


def test_a_worker_does_not_keep_the_last_copy_alive(transfers):
    completions = Completions(transfers)
    submit(transfers, Direction.OFFLOAD, jnp.ones(3))
    copy = weakref.ref(completions.wait(1).pop().data)
    gc.collect()
    assert copy() is None


def test_a_transfer_that_is_never_issued_does_not_block_the_engine(transfers):
    transfer = Transfer(Direction.LOAD, None, jnp.zeros(3), 12, 0.0)
    transfers.wait_issued(transfer, timeout_s=0.0)
    assert not transfer.is_issued.is_set()
    assert transfers.poll() == []


def test_nothing_is_copied_after_close():
    transfers = DeviceTransfers(SHARDING, RATES)
    transfers.close()
    transfer = submit(transfers, Direction.LOAD, jnp.zeros(3))
    assert not any(thread.is_alive() for thread in transfers._threads)
    assert not transfer.is_issued.is_set()
    assert transfers.poll() == []


def test_an_emulated_link_copies_at_its_bandwidth():
    transfers = DeviceTransfers(SHARDING, RATES, pace_s_per_byte=1e-5)
    assert transfers.bytes_per_s == dict.fromkeys(Direction, pytest.approx(1e5))
    completions = Completions(transfers)
    for _ in range(2):
        submit(transfers, Direction.LOAD, jnp.zeros(250))
    first, second = completions.wait(2)
    transfers.close()
    assert first.finished_s - first.started_s >= 0.0099
    assert second.started_s >= first.finished_s  # they share one link
    assert second.finished_s - second.started_s >= 0.0099


def test_bandwidth_is_measured_in_both_directions():
    rates = measure_bandwidth(SHARDING, 1 << 20, repeats=1)
    assert set(rates) == set(Direction)
    assert all(rate > 0 for rate in rates.values())


def test_a_device_without_pinned_host_memory_cannot_be_measured():
    class Memory:
        kind = "device"

    class Device:
        device_kind = "toy"

        def addressable_memories(self):
            return [Memory()]

    class Sharding:
        addressable_devices = (Device(),)

    with pytest.raises(NotImplementedError, match="toy has no pinned host memory"):
        measure_bandwidth(Sharding(), 4)
