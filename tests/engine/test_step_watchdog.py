"""A step that takes longer than any before it is noticed once."""

import threading

import pytest

from kvflow_jax.engine.step_watchdog import StepWatchdog


class Watched:
    """A watchdog on a clock that the test moves."""

    def __init__(self, timeout_s=20.0, longest_s=0.0):
        self.time_s, self.stuck = 0.0, []
        self.dog = StepWatchdog(timeout_s, longest_s, self.stuck.append, now=lambda: self.time_s)

    def step(self, seconds):
        self.dog.begin_step()
        self.time_s += seconds
        self.dog.check()
        self.dog.end_step()


def test_a_step_is_reported_once_and_until_it_ends():
    watched = Watched()
    watched.dog.begin_step()
    for seconds in (19.0, 2.0, 5.0):
        watched.time_s += seconds
        watched.dog.check()
    assert watched.stuck == [21.0]
    assert watched.dog.is_stuck
    watched.dog.end_step()
    assert not watched.dog.is_stuck
    watched.step(10.0)
    assert watched.stuck == [21.0]


def test_an_engine_between_two_steps_is_not_stuck():
    watched = Watched()
    watched.step(1.0)
    watched.time_s += 1000.0
    watched.dog.check()
    assert not watched.stuck


@pytest.mark.parametrize("longest_s", [0.0, 30.0])
def test_the_limit_grows_with_the_longest_step(longest_s):
    watched = Watched(longest_s=longest_s)
    watched.step(15.0)
    assert watched.dog.limit_s == max(45.0, 3 * longest_s)
    watched.step(40.0)
    assert not watched.stuck


def test_the_thread_reports_and_ends(monkeypatch):
    monkeypatch.setattr("kvflow_jax.engine.step_watchdog._CHECK_INTERVAL_S", 0.001)
    reported = threading.Event()
    dog = StepWatchdog(0.001, 0.0, lambda taken_s: reported.set())
    dog.begin_step()
    dog.start()
    assert reported.wait(30)
    dog.stop()
