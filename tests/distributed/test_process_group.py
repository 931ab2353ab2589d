"""Who does not answer is known, and who answers again."""

import time
from concurrent.futures import Future

import pytest

from kvflow_jax.distributed import process_group
from kvflow_jax.distributed.messages import Heartbeat
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.errors import HostLostError
from tests.distributed import pairs

PATIENCE_S = 30


def wait_until(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s


def test_a_follower_that_says_nothing_stalls_all_until_it_does(monkeypatch, caplog):
    monkeypatch.setattr(process_group, "HEARTBEAT_TIMEOUT_S", 0.2)
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        assert leader.stalled_by() == ""
        wait_until(leader.stalled_by)
        assert leader.stalled_by() == "process 1 on there has not answered for 0 s"
        far.send(Heartbeat())
        wait_until(lambda: caplog.messages)
        assert caplog.messages == ["process 1 answers again, after 0 s"]
        leader.close()


def test_followers_say_that_they_are_there(monkeypatch):
    monkeypatch.setattr(process_group, "HEARTBEAT_S", 0.01)
    with pairs.group() as (leader, _):
        heard_s = leader._heard_s[1]
        wait_until(lambda: leader._heard_s[1] > heard_s)


def test_a_step_that_fails_because_a_process_is_gone_says_so(monkeypatch):
    monkeypatch.setattr(process_group, "_exit_soon", lambda: None)
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        failed = Future()
        failed.set_exception(RuntimeError("Connection reset by peer"))
        far.close()
        with pytest.raises(HostLostError, match="process 1 on there is gone"):
            leader.wait_for(failed)


@pytest.mark.parametrize(("has_asked", "exit_code"), [(True, 0), (False, 1)])
def test_whoever_asked_for_the_end_has_ended_well(monkeypatch, has_asked, exit_code):
    """Process 0 may have nothing to close yet."""
    left = Future()
    monkeypatch.setattr(process_group, "_exit", left.set_result)
    with pairs.connected() as (near, far):
        follower = Follower(far)
        if has_asked:
            follower.request_shutdown()
        near.close()
        assert left.result(PATIENCE_S) == exit_code
        follower._is_over.set()
