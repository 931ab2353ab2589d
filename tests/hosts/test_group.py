"""Who does not answer is known, and who answers again."""

import time
from concurrent.futures import Future

import pytest

from kvflow_jax.errors import HostLostError
from kvflow_jax.hosts import group
from kvflow_jax.hosts.group import Leader
from kvflow_jax.hosts.messages import Beat
from tests.hosts import pairs

PATIENCE_S = 30


def wait_until(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s


def test_a_follower_that_says_nothing_stalls_all_until_it_does(monkeypatch, caplog):
    monkeypatch.setattr(group, "SILENT_S", 0.2)
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        assert leader.stalled_by() == ""
        wait_until(leader.stalled_by)
        assert leader.stalled_by() == "process 1 on there has not answered for 0 s"
        far.send(Beat())
        wait_until(lambda: caplog.messages)
        assert caplog.messages == ["process 1 answers again, after 0 s"]
        leader.close()


def test_followers_say_that_they_are_there(monkeypatch):
    monkeypatch.setattr(group, "BEAT_S", 0.01)
    with pairs.group() as (leader, _):
        heard_s = leader._heard_s[1]
        wait_until(lambda: leader._heard_s[1] > heard_s)


def test_a_step_that_fails_because_a_process_is_gone_says_so(monkeypatch):
    monkeypatch.setattr(group, "_end_soon", lambda: None)
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        failed = Future()
        failed.set_exception(RuntimeError("Connection reset by peer"))
        far.close()
        with pytest.raises(HostLostError, match="process 1 on there is gone"):
            leader.until(failed)
