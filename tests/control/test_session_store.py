"""Conversations between their calls."""

from kvflow_jax.control.run_tracker import RunTracker
from kvflow_jax.control.session_store import SessionStore


def test_a_history_that_a_call_continues_is_kept_until_the_call_has_ended():
    release = []
    histories = SessionStore(RunTracker(), lambda reader, run: release.append(reader))
    histories.keep("chat", None, None, 10.0)
    histories.keep("other", None, None, 10.0)
    histories.pin("chat")
    histories.pin("nobody")
    histories.expire(1000.0)  # the call was long in the queue
    assert release == ["other"]
    histories.keep("chat", None, None, 1010.0)
    histories.expire(1011.0)
    assert release == ["other", "chat"]
    assert len(histories) == 0
