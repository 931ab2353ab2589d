"""The engine's thread: every request gets a last output, whatever happens."""

import contextlib
import queue
import threading

import numpy as np
import pytest

from kvflow_jax.engine import engine_thread
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import (
    EngineClosedError,
    EngineStalledError,
    InvalidRequestError,
    PolicyError,
    QueueFullError,
    StepFailedError,
)
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import make_engine

PROMPT = range(8, 20)
PARAMS = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
TIMEOUT_S = 30


class PausedEngine:
    """An engine thread that waits in the middle of a step until ``resume`` is set."""

    def __init__(self, **settings) -> None:
        self.engine = make_engine(**settings)
        self.in_step, self.resume = threading.Event(), threading.Event()
        submit = self.engine.runner.submit

        def paused_submit(batch):
            self.in_step.set()
            assert self.resume.wait(TIMEOUT_S)
            return submit(batch)

        self.engine.runner.submit = paused_submit
        self.thread = EngineThread(self.engine)

    def submit(self, **rest):
        """Submit a request; return the queue of its outputs."""
        outputs = queue.SimpleQueue()
        self.thread.submit(RequestSpec(PROMPT, PARAMS, **rest), outputs.put)
        return outputs


@contextlib.contextmanager
def running_thread(**settings):
    thread = EngineThread(make_engine(**settings))
    try:
        yield thread
    finally:
        thread.close()


def last(outputs):
    while (output := outputs.get(timeout=TIMEOUT_S)).finish_reason is None:
        pass
    return output


def test_a_request_that_arrives_while_a_prompt_is_computed_joins_the_next_step():
    engine = make_engine(max_model_len=128, num_pages=60, max_prefill_tokens=16)
    steps, waits, goes_on = [], threading.Event(), threading.Event()
    submit = engine.runner.submit

    class Step:
        def __init__(self, step):
            self._step = step

        def result(self):
            waits.set()
            assert goes_on.wait(TIMEOUT_S)
            return self._step.result()

        def logprobs(self):
            return None

    def submit_slowly(batch):
        steps.append(set(batch.tokens.tolist()))
        return Step(submit(batch))

    engine.runner.submit = submit_slowly
    thread = EngineThread(engine)
    outputs = queue.SimpleQueue()
    thread.submit(RequestSpec([8] * 60, PARAMS), outputs.put)
    assert waits.wait(TIMEOUT_S)
    thread.submit(RequestSpec([9] * 12, PARAMS), outputs.put)
    goes_on.set()
    last(outputs), last(outputs)
    thread.close()
    assert 9 in steps[1]


def test_requests_in_the_inbox_get_an_error_when_the_engine_closes():
    paused = PausedEngine()
    running = paused.submit()
    assert paused.in_step.wait(TIMEOUT_S)
    waiting = paused.submit()  # stays in the inbox: the thread is busy
    closer = threading.Thread(target=paused.thread.close)
    closer.start()
    while paused.thread._is_open:
        pass
    paused.resume.set()
    closer.join()
    for outputs in (running, waiting):
        output = last(outputs)
        assert output.finish_reason is FinishReason.ERROR
        assert isinstance(output.error, EngineClosedError)
    with pytest.raises(EngineClosedError):
        paused.submit()


def test_requests_in_the_inbox_get_an_error_when_the_thread_dies():
    paused = PausedEngine()

    def die(*_):
        if paused.thread._channels:  # not before a request is pending
            raise SystemExit
        return False

    paused.engine.fail_all = paused.engine.step = die
    threading.excepthook, before = (lambda _: None), threading.excepthook
    try:
        output = last(paused.submit())
        paused.thread._thread.join(TIMEOUT_S)
    finally:
        threading.excepthook = before
    assert isinstance(output.error, EngineClosedError)
    assert not paused.thread.is_alive
    with pytest.raises(EngineClosedError):
        paused.submit()


@pytest.fixture
def stuck(monkeypatch):
    """An engine in a step that has not ended in time, with the outputs of its request."""
    monkeypatch.setattr(engine_thread, "_LIVENESS_INTERVAL_S", 0.001)
    monkeypatch.setattr(engine_thread, "_CLOSE_TIMEOUT_S", 0.001)
    paused = PausedEngine()
    outputs = paused.submit()
    assert paused.in_step.wait(TIMEOUT_S)
    paused.thread._watchdog._timeout_s = paused.thread._watchdog._longest_s = -1.0
    paused.thread._watchdog.check()
    yield paused, outputs
    paused.resume.set()
    paused.thread._thread.join(0.01)
    paused.thread.close()


def test_a_step_that_does_not_end_ends_its_requests_and_is_reported(stuck):
    paused, outputs = stuck
    output = last(outputs)
    assert isinstance(output.error, EngineStalledError)
    assert "has not ended for" in paused.thread.stalled_by
    assert paused.thread.stuck_reason == paused.thread.stalled_by
    for call in (paused.submit, paused.thread.flush_cache, paused.thread.check_integrity):
        with pytest.raises(EngineStalledError, match="has not ended"):
            call()
    with pytest.raises(queue.Empty):
        outputs.get_nowait()


def test_an_engine_whose_step_ends_late_serves_on(stuck):
    paused, outputs = stuck
    last(outputs)
    paused.thread._watchdog._timeout_s = 1000.0
    paused.resume.set()
    while paused.thread.stalled_by:
        pass
    assert last(paused.submit()).finish_reason is FinishReason.LENGTH
    paused.thread.check_integrity()
    assert paused.engine.is_idle
    with pytest.raises(queue.Empty):
        outputs.get_nowait()


def test_drain_and_close_return_though_a_step_does_not_end(stuck):
    paused, outputs = stuck
    assert not paused.thread.drain(0.0)
    paused.thread.close()
    assert paused.thread.is_alive
    assert isinstance(last(outputs).error, EngineStalledError)


def test_a_close_waits_for_no_step_that_the_watchdog_still_allows(monkeypatch):
    monkeypatch.setattr(engine_thread, "_CLOSE_TIMEOUT_S", 0.001)
    paused = PausedEngine()
    outputs = paused.submit()
    assert paused.in_step.wait(TIMEOUT_S)
    assert not paused.thread.drain(0.0)
    assert isinstance(last(outputs).error, EngineClosedError)
    paused.thread.close()
    paused.resume.set()
    paused.thread._thread.join(TIMEOUT_S)
    assert not paused.thread.is_alive


@pytest.mark.parametrize("field", ["salt", "priority", "tenant", "user", "rank", "hints"])
def test_a_field_of_a_wrong_type_is_refused_by_name_and_the_engine_serves_on(field):
    with running_thread() as thread:
        outputs = queue.SimpleQueue()
        with pytest.raises(InvalidRequestError, match=f"{field} must be") as raised:
            thread.submit(RequestSpec(PROMPT, PARAMS, **{field: 0.5}), outputs.put)
        assert raised.value.param == field
        thread.submit(RequestSpec(PROMPT, PARAMS), outputs.put)
        assert last(outputs).finish_reason is FinishReason.LENGTH


def test_a_request_that_can_never_run_is_refused_at_once():
    with running_thread() as thread, pytest.raises(InvalidRequestError, match="at least one token"):
        thread.submit(RequestSpec([]), print)


def test_a_request_that_cannot_be_queued_fails_alone():
    paused = PausedEngine()
    add = paused.engine.add

    def failing_add(spec, *args, **kwargs):
        if spec.salt:
            raise RuntimeError("injected")
        return add(spec, *args, **kwargs)

    paused.engine.add = failing_add
    paused.resume.set()
    first, bad, good = paused.submit(), paused.submit(salt="bad"), paused.submit()
    assert isinstance(last(bad).error, InvalidRequestError)
    assert last(first).finish_reason is last(good).finish_reason is FinishReason.LENGTH
    paused.thread.check_integrity()
    paused.thread.close()


def test_more_requests_than_the_bound_are_refused():
    paused = PausedEngine()
    pending = [paused.submit() for _ in range(paused.thread.max_pending)]
    with pytest.raises(QueueFullError, match="raise max_waiting"):
        paused.submit()
    paused.resume.set()
    assert all(last(outputs).finish_reason is FinishReason.LENGTH for outputs in pending)
    last(paused.submit())  # there is room again
    paused.thread.close()


def test_an_aborted_request_ends_and_settle_waits_for_it():
    paused = PausedEngine()
    outputs: list = []
    request_id = paused.thread.submit(RequestSpec(PROMPT, PARAMS), outputs.append)
    paused.thread.abort(request_id)
    paused.thread.abort(request_id + 1)  # an unknown id
    paused.resume.set()
    paused.thread.settle()
    assert outputs[-1].finish_reason is FinishReason.ABORT
    assert paused.thread.stats.num_finished == {"abort": 1}
    paused.thread.close()


def test_draining_finishes_pending_requests_and_refuses_new_ones():
    paused = PausedEngine()
    outputs = paused.submit()
    paused.resume.set()
    assert paused.thread.drain(TIMEOUT_S)
    assert last(outputs).finish_reason is FinishReason.LENGTH
    with pytest.raises(EngineClosedError, match="shutting down"):
        paused.submit()
    paused.thread.close()


def test_draining_cuts_requests_off_at_the_timeout(monkeypatch):
    paused = PausedEngine()
    outputs = paused.submit()
    assert paused.in_step.wait(TIMEOUT_S)
    post = paused.thread._post
    posted = []

    def counted_post(command):
        post(command)
        posted.append(command)
        if len(posted) == 2:  # drain has timed out, and fails the requests
            paused.resume.set()

    monkeypatch.setattr(paused.thread, "_post", counted_post)
    assert not paused.thread.drain(0.0)
    assert isinstance(last(outputs).error, EngineClosedError)
    paused.thread.close()


def test_an_engine_that_fails_ends_its_requests_and_continues_to_serve():
    with running_thread() as thread:
        step = thread._engine.step
        errors = [RuntimeError("injected")]

        def failing_step():
            if errors and not thread._engine.is_idle:
                raise errors.pop()
            return step()

        thread._engine.step = failing_step
        failed, served = queue.SimpleQueue(), queue.SimpleQueue()
        thread.submit(RequestSpec(PROMPT, PARAMS), failed.put)
        assert "injected" in str(last(failed).error)
        thread.submit(RequestSpec(PROMPT, PARAMS), served.put)
        assert last(served).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("result", ["error", np.nan])
def test_a_policy_that_fails_ends_requests_and_the_engine_continues_to_serve(result):
    is_failing = True

    def policy(facts):
        if is_failing and result == "error":
            raise ZeroDivisionError("injected")
        return np.full((len(facts), 1), result if is_failing else 0.0)

    paused = PausedEngine(num_pages=16, cache=CacheSettings(eviction=policy))
    try:
        # The second request is in the engine when the first ends, and its blocks are released.
        first = paused.submit()
        assert paused.in_step.wait(TIMEOUT_S)
        second = queue.SimpleQueue()
        paused.thread.submit(RequestSpec(range(30, 42), PARAMS), second.put)
        paused.resume.set()
        assert last(first).finish_reason is FinishReason.LENGTH
        error = last(second).error
        assert isinstance(error, StepFailedError)
        assert f"the eviction policy {__name__}:" in str(error)
        is_failing = False
        assert last(paused.submit()).finish_reason is FinishReason.LENGTH
        paused.thread.check_integrity()
    finally:
        paused.thread.close()


def test_runs_and_graphs_are_reported_between_two_steps():
    graph = Workflow().edge("plan", "code").freeze()
    with running_thread() as thread:
        thread.register_graph("tenant", "team", graph)
        assert thread.begin_run("tenant", "run", None, "team") is HintStatus.APPLIED
        assert thread.begin_run("tenant", "other", None, "no such") is HintStatus.UNKNOWN_GRAPH
        assert thread.advance_run("tenant", "run", ["plan", "test"], ["code"]) == ["test"]
        assert thread.advance_run("tenant", "no such", [], []) is None
        assert thread.end_run("tenant", "run")
        assert not thread.end_run("tenant", "run")
        assert thread.unregister_graph("tenant", "team")
        assert not thread.unregister_graph("tenant", "team")
        assert thread.flush_cache()


def test_commands_raise_once_the_engine_is_closed(monkeypatch):
    monkeypatch.setattr(engine_thread, "_LIVENESS_INTERVAL_S", 0.0)
    with running_thread() as thread:
        pass
    assert not thread.is_alive
    with pytest.raises(EngineClosedError, match="stopped"):
        thread.flush_cache()
    thread.settle()
    thread.close()  # a second time


@pytest.mark.parametrize("command", ["end_run", "flush_cache"])
def test_a_policy_that_fails_once_in_a_command_leaves_an_engine_that_serves(command):
    is_failing = False

    def policy(facts):
        if is_failing:
            raise ZeroDivisionError("injected")
        return facts.last_use[:, None]

    settings = CacheSettings(eviction=policy, num_host_blocks=16, extent_sizes=(1, 4))
    hints = Hints(workflow_id="w", agent_id="a", num_fixed=8, next_agents={"a": 1.0})
    with running_thread(cache=settings) as thread:
        outputs = queue.SimpleQueue()
        thread.submit(RequestSpec(PROMPT, PARAMS, hints=hints), outputs.put)
        assert last(outputs).finish_reason is FinishReason.LENGTH
        is_failing = True
        with pytest.raises(PolicyError, match="injected"):
            thread.flush_cache() if command == "flush_cache" else thread.end_run("", "w")
        is_failing = False
        thread.check_integrity()
        for _ in range(3):
            thread.submit(RequestSpec(PROMPT, PARAMS), outputs.put)
            assert last(outputs).finish_reason is FinishReason.LENGTH
        thread.check_integrity()


def test_too_much_memory_of_grammars_is_refused_until_a_request_has_ended(monkeypatch):
    def refuse(*args):
        raise QueueFullError("the grammars take too much")

    with running_thread() as thread:
        monkeypatch.setattr(thread._engine, "compile_grammar", refuse)
        monkeypatch.setattr(thread._backlog, "retry_after_s", lambda tenant, now: 17)
        with pytest.raises(QueueFullError, match="the grammars take too much") as raised:
            thread.compile_grammar(StructuredOutputsParams(regex="a"), tenant="t")
        assert raised.value.retry_after_s == 17


def test_the_learned_order_is_shown_erased_and_saved_at_the_end(tmp_path):
    path = tmp_path / "order"
    cache = CacheSettings(eviction="kvflow", predictor="context-tree", learned_order=path)
    thread = EngineThread(make_engine(cache=cache))
    order = thread._engine.controller.learned_order
    for number in range(12):
        history = [*"abc" * 4][:number]
        thread._call(lambda h=history, n=number: order.observe("t", h, "abc"[n % 3], 1.0))
    rows = thread.learned_order("t", 10)
    assert {(row.context, row.agent) for row in rows} >= {(("a",), "b"), (("b",), "c")}
    assert thread.learned_order("other", 10) == []
    thread.settle()
    assert thread.stats.num_learned_agents == 3
    assert sum(thread.stats.predictions.values()) == 12
    thread.close()
    again = EngineThread(make_engine(cache=cache))
    known = {(row.context, row.agent, round(row.num_seen, 2)) for row in rows}
    loaded = again.learned_order("t", 10)
    assert {(row.context, row.agent, round(row.num_seen, 2)) for row in loaded} == known
    assert again.erase_learned_order("t")
    assert not again.erase_learned_order("t")
    again.close()
    assert b'"t"' not in path.read_bytes()
