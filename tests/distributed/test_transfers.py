"""Transfers are done once every process has copied, and few are in flight at once."""

import queue
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.distributed import transfers as module
from kvflow_jax.distributed.leader import RemoteArrays
from kvflow_jax.distributed.messages import Copy
from kvflow_jax.distributed.transfers import MAX_IN_FLIGHT, CopyError, LeaderTransfers
from kvflow_jax.errors import HostLostError

PATIENCE_S = 30


class FakeLeader:
    """A leader whose followers answer when the test says so."""

    def __init__(self):
        self.lost = Future()
        self.copies = []
        self.answers = {}
        self.is_closed = False

    def send(self, message):
        if isinstance(message, Copy):
            self.copies.append(message)

    def expect_copies(self, array_id):
        return self.answers.setdefault(array_id, Future())

    def wait_for(self, future):
        return future.result(PATIENCE_S)

    def on_lost(self, callback):
        self.lost.add_done_callback(lambda _: callback())

    def close(self):
        self.is_closed = True

    def answer(self, index, error=""):
        self.answers[self.copies[index].array_id].set_result(error)


class Setup:
    def __init__(self, **kwargs):
        self.leader = FakeLeader()
        self.arrays = RemoteArrays(self.leader)
        rates = dict.fromkeys(Direction, 1e9)
        self.transfers = LeaderTransfers(self.leader, self.arrays, rates, **kwargs)
        self.notified = queue.SimpleQueue()
        self.transfers.listen(lambda: self.notified.put(None))

    def submit(self, direction=Direction.OFFLOAD, is_cancelled=False):
        array = self.arrays.add(self.arrays.next_id(), jax.device_put(np.arange(4.0)))
        transfer = Transfer(direction, None, array, array.array.nbytes, 0.0)
        transfer.is_cancelled = is_cancelled
        self.transfers.submit(transfer)
        return transfer

    def poll(self):
        """The transfers done, once one is."""
        self.notified.get(timeout=PATIENCE_S)
        return self.transfers.poll()


@pytest.fixture
def setup():
    setup = Setup()
    yield setup
    for answer in setup.leader.answers.values():
        if not answer.done():
            answer.set_result("")
    setup.transfers.close()
    assert setup.leader.is_closed


def test_a_transfer_is_done_once_every_follower_has_copied(setup):
    offload = setup.submit()
    source_id = offload.data.array_id - 1
    assert setup.leader.copies == [Copy(offload.data.array_id, source_id, to_host=True)]
    assert offload.is_issued.is_set()
    assert setup.transfers.poll() == []
    setup.leader.answer(0)
    assert setup.poll() == [offload]
    assert offload.error is None
    np.testing.assert_array_equal(offload.data.array, np.arange(4.0))
    assert offload.started_s <= offload.finished_s


def test_directions_do_not_wait_for_each_other(setup):
    setup.submit(Direction.OFFLOAD)
    load = setup.submit(Direction.LOAD)
    assert [copy.to_host for copy in setup.leader.copies] == [True, False]
    setup.leader.answer(1)
    assert setup.poll() == [load]


def test_the_next_transfer_is_dispatched_when_the_engine_polls(setup):
    transfers = [setup.submit() for _ in range(MAX_IN_FLIGHT + 1)]
    assert len(setup.leader.copies) == MAX_IN_FLIGHT
    setup.leader.answer(0)
    assert setup.poll() == transfers[:1]
    assert len(setup.leader.copies) == MAX_IN_FLIGHT + 1


def test_a_transfer_that_fails_on_a_follower_has_no_data(setup):
    transfer = setup.submit()
    setup.leader.answer(0, "process 1: no room")
    assert setup.poll() == [transfer]
    assert isinstance(transfer.error, CopyError)
    assert str(transfer.error) == "process 1: no room"
    assert transfer.data is None


def test_a_copy_that_fails_on_the_leader_is_dropped_by_followers(setup, monkeypatch):
    def fail(array, *, to_host):
        raise MemoryError("no room")

    monkeypatch.setattr(module, "copy_shards", fail)
    transfer = setup.submit()
    setup.leader.answer(0)
    assert setup.poll() == [transfer]
    assert isinstance(transfer.error, MemoryError)
    assert setup.leader.copies[0].array_id in setup.arrays._dropped


def test_a_cancelled_transfer_is_not_copied(setup):
    transfer = setup.submit(is_cancelled=True)
    assert setup.poll() == [transfer]
    assert transfer.data is None
    assert setup.leader.copies == []


def test_a_lost_process_notifies_the_engine_and_fails_its_poll(setup):
    setup.leader.lost.set_exception(HostLostError("process 1 is gone"))
    with pytest.raises(HostLostError, match="process 1 is gone"):
        setup.poll()


def test_an_emulated_link_bounds_the_bandwidth():
    setup = Setup(pace_s_per_byte=1e-6)
    assert setup.transfers.bytes_per_s == dict.fromkeys(Direction, 1e6)
    setup.transfers.close()
