"""Conversations between their calls."""

from kvflow_jax.control.run_tracker import Progress
from kvflow_jax.control.session_store import Histories


def test_a_history_that_a_call_continues_is_kept_until_the_call_has_ended():
    let_go = []
    histories = Histories(Progress(), lambda owner, run: let_go.append(owner))
    histories.keep("chat", None, None, 10.0)
    histories.keep("other", None, None, 10.0)
    histories.hold("chat")
    histories.hold("nobody")
    histories.expire(1000.0)  # the call was long in the queue
    assert let_go == ["other"]
    histories.keep("chat", None, None, 1010.0)
    histories.expire(1011.0)
    assert let_go == ["other", "chat"]
    assert len(histories) == 0
