"""The engine behind its inbox: every request gets a last output, whatever happens."""

import queue
import threading

import numpy as np
import pytest

from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import EngineClosedError, InvalidRequestError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.sampling_params import SamplingParams
from tests.support.token_runner import make_engine

PARAMS = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
PATIENCE_S = 30


class HeldEngine:
    """An engine thread that stands in the middle of a step until told to go on."""

    def __init__(self) -> None:
        self.engine = make_engine()
        self.in_step, self.go_on = threading.Event(), threading.Event()
        submit = self.engine.runner.submit

        def held_submit(batch):
            self.in_step.set()
            assert self.go_on.wait(PATIENCE_S)
            return submit(batch)

        self.engine.runner.submit = held_submit
        self.thread = EngineThread(self.engine)

    def submit(self, **rest):
        news = queue.SimpleQueue()
        self.thread.submit(np.arange(8, 20), PARAMS, news.put, **rest)
        return news


def last(news):
    while (output := news.get(timeout=PATIENCE_S)).finish_reason is None:
        pass
    return output


def test_requests_in_the_inbox_get_an_error_when_the_engine_closes():
    held = HeldEngine()
    running = held.submit()
    assert held.in_step.wait(PATIENCE_S)
    waiting = held.submit()  # stays in the inbox: the thread is busy
    closer = threading.Thread(target=held.thread.close)
    closer.start()
    while held.thread._is_open:
        pass
    held.go_on.set()
    closer.join()
    for news in (running, waiting):
        output = last(news)
        assert output.finish_reason is FinishReason.ERROR
        assert isinstance(output.error, EngineClosedError)
    with pytest.raises(EngineClosedError):
        held.submit()


def test_requests_in_the_inbox_get_an_error_when_the_thread_dies():
    held = HeldEngine()

    def die(*_):
        if held.thread._num_pending:  # not before there is anything to answer
            raise SystemExit
        return False

    held.engine.fail_all = held.engine.step = die
    threading.excepthook, before = (lambda _: None), threading.excepthook
    try:
        output = last(held.submit())
        held.thread._thread.join(PATIENCE_S)
    finally:
        threading.excepthook = before
    assert isinstance(output.error, EngineClosedError)
    assert not held.thread.is_alive
    with pytest.raises(EngineClosedError):
        held.submit()


def test_an_argument_of_a_wrong_type_fails_its_own_request_only():
    held = HeldEngine()
    held.go_on.set()
    first, bad, good = held.submit(), held.submit(priority="high"), held.submit()
    assert isinstance(last(bad).error, InvalidRequestError)
    assert last(first).finish_reason is last(good).finish_reason is FinishReason.LENGTH
    held.thread.check_integrity()
    held.thread.close()
