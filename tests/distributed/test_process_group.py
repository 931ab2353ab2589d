"""Gathers, heartbeats, and how the end of a process is noticed."""

import signal
import threading
import time
from concurrent.futures import Future

import pytest

from kvflow_jax.distributed import process_group
from kvflow_jax.distributed.messages import Close, Copied, Failed, Heartbeat, RequestShutdown
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.errors import HostLostError
from tests.distributed import pairs

PATIENCE_S = 30


def wait_until(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s


@pytest.fixture
def no_exit(monkeypatch):
    """A broken group would end this process."""
    monkeypatch.setattr(process_group, "_exit_soon", lambda: None)


def test_every_process_gathers_the_values_of_all():
    with pairs.group() as (leader, follower):
        gathered = []
        thread = threading.Thread(target=lambda: gathered.append(follower.gather({"free": None})))
        thread.start()
        assert leader.gather({"free": 3}) == [{"free": 3}, {"free": None}]
        thread.join()
        assert gathered == [[{"free": 3}, {"free": None}]]


def test_a_follower_without_heartbeats_stalls_the_group_until_it_sends_again(monkeypatch, caplog):
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


def test_followers_send_heartbeats(monkeypatch):
    monkeypatch.setattr(process_group, "HEARTBEAT_S", 0.01)
    with pairs.group() as (leader, _):
        last_s = leader._last_message_s[1]
        wait_until(lambda: leader._last_message_s[1] > last_s)


def test_a_copy_is_done_once_every_follower_has_answered(no_exit):
    with pairs.connected() as (near, far), pairs.connected() as (other_near, other_far):
        leader = Leader({1: ("there", near), 2: ("yonder", other_near)})
        copied, failed = leader.expect_copies(5), leader.expect_copies(6)
        far.send(Copied(5, ""))
        far.send(Copied(6, "no room"))
        other_far.send(Copied(6, ""))
        assert leader.wait_for(failed) == "no room"
        assert not copied.done()
        other_far.send(Copied(5, ""))
        assert leader.wait_for(copied) == ""
        leader.close()


def test_a_step_that_fails_because_a_process_is_gone_names_the_process(no_exit):
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        failed = Future()
        failed.set_exception(RuntimeError("Connection reset by peer"))
        far.close()
        with pytest.raises(HostLostError, match="process 1 on there is gone"):
            leader.wait_for(failed)


def test_a_step_that_fails_with_all_processes_there_keeps_its_error(monkeypatch):
    monkeypatch.setattr(process_group, "DETECT_S", 0.0)
    with pairs.group() as (leader, _):
        failed = Future()
        failed.set_exception(RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            leader.wait_for(failed)


def test_a_follower_that_fails_breaks_the_group_with_its_reason(no_exit):
    with pairs.connected() as (near, far):
        leader, is_lost = Leader({1: ("there", near)}), threading.Event()
        leader.on_lost(is_lost.set)
        far.send(Failed("out of memory"))
        assert is_lost.wait(PATIENCE_S)
        with pytest.raises(HostLostError, match="process 1 on there has failed: out of memory"):
            leader.send(Heartbeat())


def test_a_call_that_fails_on_the_leader_alone_ends_the_followers(no_exit):
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        with pytest.raises(MemoryError), leader.lockstep():
            raise MemoryError("no room")
        assert far.receive(PATIENCE_S) == Failed(
            "process 0 is out of lockstep with the others: no room"
        )
        leader.fail("a second failure changes nothing")
        with pytest.raises(HostLostError, match="no room"):
            leader.lost.result()


def test_a_follower_that_is_asked_to_stop_stops_the_leader(monkeypatch):
    signals = Future()
    monkeypatch.setattr(process_group.os, "kill", lambda pid, number: signals.set_result(number))
    with pairs.connected() as (near, far):
        leader = Leader({1: ("there", near)})
        far.send(RequestShutdown())
        assert signals.result(PATIENCE_S) == signal.SIGTERM
        leader.close()
        assert far.receive(PATIENCE_S) == Close()


@pytest.mark.parametrize(("has_requested", "exit_code"), [(True, 0), (False, 1)])
def test_a_follower_exits_well_only_if_it_requested_the_leaders_end(
    monkeypatch, has_requested, exit_code
):
    """A leader that was still loading exits without Close."""
    exited = Future()
    monkeypatch.setattr(process_group, "_exit", exited.set_result)
    with pairs.connected() as (near, far):
        follower = Follower(far)
        if has_requested:
            follower.request_shutdown()
        near.close()
        assert exited.result(PATIENCE_S) == exit_code
        follower._is_closed.set()


def test_a_follower_exits_when_the_leader_has_failed(monkeypatch, caplog):
    exited = Future()
    monkeypatch.setattr(process_group, "_exit", exited.set_result)
    with pairs.connected() as (near, far):
        follower = Follower(far)
        near.send(Failed("out of memory"))
        assert exited.result(PATIENCE_S) == 1
        near.send(Close())
        assert list(follower.messages()) == []
    assert "process 0 has failed: out of memory; exiting" in caplog.messages
