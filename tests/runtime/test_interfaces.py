"""The clock of a server, and the transfers of an engine without a host tier."""

import threading

import pytest

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.errors import IntegrityError
from kvflow_jax.runtime.interfaces import NoTransfers, WallClock


def test_the_wall_clock_does_not_run_backwards():
    clock = WallClock()
    times = [clock.now() for _ in range(3)]
    assert times == sorted(times)


def test_waiting_ends_with_the_event_or_the_timeout():
    clock, event = WallClock(), threading.Event()
    clock.wait(event, timeout_s=0.0)
    assert not event.is_set()
    event.set()
    clock.wait(event)  # returns although it has no timeout


def test_without_a_host_tier_a_transfer_is_an_error():
    transfers = NoTransfers()
    transfer = Transfer(Direction.LOAD, None, None, 1, 0.0)
    with pytest.raises(IntegrityError, match="no host tier"):
        transfers.submit(transfer)
    assert list(transfers.poll()) == []
