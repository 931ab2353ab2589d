"""A request gets one last output, whoever delivers it."""

import threading

import pytest

from kvflow_jax.engine.output_channel import OutputChannel
from kvflow_jax.requests.outputs import FinishReason, Output


def output(reason=None):
    return Output(0, "", (), reason)


def test_nothing_follows_the_last_output():
    outputs = []
    channel = OutputChannel(outputs.append)
    assert not channel.deliver(output())
    assert channel.deliver(output(FinishReason.ERROR))
    assert not channel.deliver(output(FinishReason.LENGTH))
    assert [one.finish_reason for one in outputs] == [None, FinishReason.ERROR]


def test_a_callback_that_hangs_holds_up_no_other_thread():
    is_called, may_return = threading.Event(), threading.Event()

    def on_output(output):
        is_called.set()
        assert may_return.wait(30)

    channel = OutputChannel(on_output)
    thread = threading.Thread(target=channel.deliver, args=[output()])
    thread.start()
    assert is_called.wait(30)
    assert not channel.deliver(output(FinishReason.ERROR), timeout_s=0.001)
    may_return.set()
    thread.join()
    assert channel.deliver(output(FinishReason.ERROR), timeout_s=0.001)


def test_a_callback_that_raises_may_be_called_again():
    def on_output(output):
        raise RuntimeError("injected")

    channel = OutputChannel(on_output)
    for reason in (None, FinishReason.ERROR):
        with pytest.raises(RuntimeError, match="injected"):
            channel.deliver(output(reason))
    assert not channel.deliver(output(FinishReason.ABORT))
