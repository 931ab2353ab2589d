"""Virtual time advances only when asked to, and runs events on the way."""

import threading

import pytest

from kvflow_jax.sim.clock import VirtualClock


@pytest.fixture
def clock():
    return VirtualClock()


def test_events_run_in_order_and_at_their_time(clock):
    seen = []
    for time_s in (2.0, 1.0, 2.0, 5.0):
        clock.schedule(time_s, lambda: seen.append(clock.now()))
    clock.advance_to(3.0)
    assert seen == [1.0, 2.0, 2.0]
    assert clock.now() == 3.0
    clock.schedule(1.0, lambda: seen.append(clock.now()))  # in the past: runs at the current time
    assert clock.advance_to_next_event()
    assert clock.advance_to_next_event()
    assert seen[3:] == [3.0, 5.0]
    assert not clock.advance_to_next_event()


def test_events_of_one_time_run_in_the_order_of_scheduling(clock):
    seen = []
    for name in "abc":
        clock.schedule(1.0, lambda name=name: seen.append(name))
    clock.advance(1.0)
    assert seen == ["a", "b", "c"]


def test_time_never_goes_back(clock):
    clock.advance_to(3.0)
    clock.advance_to(1.0)
    assert clock.now() == 3.0


def test_the_next_event_is_known(clock):
    assert clock.next_event_s is None
    clock.schedule(4.0, lambda: None)
    clock.schedule(2.0, lambda: None)
    assert clock.next_event_s == 2.0


def test_waiting_advances_to_the_event_or_the_timeout(clock):
    event = threading.Event()
    clock.schedule(2.0, event.set)
    clock.wait(event, timeout_s=1.0)
    assert (clock.now(), event.is_set()) == (1.0, False)
    clock.wait(event)
    assert (clock.now(), event.is_set()) == (2.0, True)


def test_waiting_for_what_no_event_can_set_returns(clock):
    clock.wait(threading.Event())
    assert clock.now() == 0.0
