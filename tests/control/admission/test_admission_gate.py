"""Time-sliced runs through the engine: in virtual time, and on the engine thread.

The cache holds three of the six prefixes that are read.
"""

import queue
import threading

import numpy as np
import pytest

from kvflow_jax.control import controller, cost_model
from kvflow_jax.control.admission import admission_control
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine_thread import POLL_INTERVAL_S, EngineThread
from kvflow_jax.errors import StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.workflow.hints import Hints, Reuse
from tests.support.token_runner import Client, make_engine, run

TIME_SLICED = CacheSettings(eviction="kvflow-cost", admission_control=True)
UNCONTROLLED = CacheSettings(eviction="kvflow-cost")
RUNS = [f"run{i}" for i in range(6)]
PROMPT, PAGE = 32, 4
TOKEN_S = 0.02  # per prompt token
TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def _short_prompts_count_for_the_cost_model(monkeypatch):
    monkeypatch.setattr(cost_model, "_MIN_TOKENS", 1)


def make(cache, num_pages=30, clock=None):
    clock = clock or VirtualClock()
    engine = make_engine(num_pages=num_pages, max_num_seqs=8, cache=cache, clock=clock)
    submit = engine.runner.submit

    def submit_in_time(batch):
        clock.advance(TOKEN_S * int(batch.query_len.sum()))
        return submit(batch)

    engine.runner.submit = submit_in_time
    return engine


def call(engine, name, turn=0, **rest):
    prompt = [RUNS.index(name) + 10] * PROMPT + [turn % 40, turn // 40, 3]
    hints = {"workflow_id": name, "agent_id": name, "num_fixed": PROMPT, **rest}
    return Client(engine, prompt, max_tokens=3, ignore_eos=True, hints=Hints(**hints))


def run_all(engine, num_calls=30):
    """Let each run call many times; tokens computed, and the most runs throttled at once."""
    clients = {name: [call(engine, name)] for name in RUNS}
    max_throttled = 0
    while not all(len(own) == num_calls and own[-1].reason for own in clients.values()):
        is_busy = engine.step()
        engine.check_integrity()
        max_throttled = max(max_throttled, engine.stats.num_runs_held_back)
        for name, own in clients.items():
            if own[-1].reason and len(own) < num_calls:
                own.append(call(engine, name, len(own)))
                is_busy = True
        if not is_busy:
            assert engine.is_waiting
            engine.clock.advance(POLL_INTERVAL_S)
    run(engine)
    for own in clients.values():
        assert all(client.tokens == client.cold for client in own)
    assert engine.stats.num_runs_held_back == 0
    assert engine.stats.num_blocks_leased == 0
    return engine.stats.prompt_tokens - engine.stats.cached_prompt_tokens, max_throttled


def test_runs_that_thrash_are_time_sliced_and_all_end():
    computed, num_throttled = run_all(make(UNCONTROLLED))
    computed_sliced, num_throttled_sliced = run_all(make(TIME_SLICED))
    assert num_throttled == 0
    assert num_throttled_sliced > 0
    assert computed_sliced < 0.75 * computed


def test_runs_that_fit_are_not_throttled():
    _, num_throttled = run_all(make(TIME_SLICED, num_pages=100))
    assert num_throttled == 0


def recomputed_tokens(engine):
    return engine.controller._gate._control._recompute_s


def recomputed_after_eviction(name, **rest):
    """Tokens that count as recomputed in a call that repeats one whose prefix was evicted."""
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    recomputed = []
    for _ in range(2):
        before = recomputed_tokens(engine)
        call(engine, name, **rest)
        run(engine)
        recomputed.append(recomputed_tokens(engine) - before)
        engine.cache.evict(engine.cache.num_idle, 0.0)
    assert recomputed[0] == 0
    return recomputed[1]


def test_a_prefix_counts_as_recomputed_after_its_eviction():
    assert recomputed_after_eviction("run0") == PROMPT
    assert recomputed_after_eviction("run0", num_fixed=8) == 8
    assert (
        recomputed_after_eviction("run0", reuse=Reuse.KEEP) == PROMPT
    )  # the kept history ends with the prompt
    assert recomputed_after_eviction("run0", reuse=Reuse.KEEP, num_fixed=8) == PROMPT
    assert recomputed_after_eviction("run0", session_id="s", num_fixed=8) == PROMPT


def test_the_block_of_the_last_token_never_counts_as_recomputed():
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    for _ in range(3):
        hints = Hints(workflow_id="run", agent_id="agent", num_fixed=PROMPT)
        Client(engine, [9] * PROMPT, max_tokens=1, hints=hints)
        run(engine)
    assert recomputed_tokens(engine) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_prefixes_dropped_by_a_failure_or_a_flush_do_not_count_as_recomputed(fails):
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    for name in RUNS[:2]:
        call(engine, name)
        run(engine)
    if fails:
        engine.fail_all(StepFailedError("injected"))
    else:
        assert engine.flush_cache()
    before = recomputed_tokens(engine)
    call(engine, "run0")
    run(engine)
    assert recomputed_tokens(engine) == before
    engine.cache.evict(engine.cache.num_idle, 0.0)
    call(engine, "run0")
    run(engine)
    assert recomputed_tokens(engine) == before + PROMPT


def test_a_throttled_call_that_is_aborted_leaves_the_queue():
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1")
    waits = call(engine, "run1", 1)
    engine.step()
    assert engine.stats.num_runs_held_back == 1
    assert engine.is_waiting
    engine.abort(waits.id)
    assert waits.reason is FinishReason.ABORT
    assert engine.stats.num_runs_held_back == 0
    assert engine.is_idle
    engine.check_integrity()


def test_the_end_of_a_run_makes_room_for_a_queued_one():
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1")
    waits = call(engine, "run1", 1)
    engine.step()
    assert waits.reason is None
    engine.controller.end_run("", "run0")
    engine.clock.advance(POLL_INTERVAL_S)
    run(engine)
    assert waits.tokens == waits.cold


def test_a_new_run_of_the_same_name_is_not_throttled():
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1")
    waits = call(engine, "run1", 1)
    engine.controller.end_run("", "run1")
    engine.clock.advance(POLL_INTERVAL_S)
    engine.step()
    assert engine.stats.num_runs_held_back == 0
    again = call(engine, "run1", 2, agent_id="another")
    run(engine)
    assert waits.tokens == waits.cold
    assert again.tokens == again.cold


def test_a_call_ends_for_admission_control_even_if_its_hints_raise(caplog, monkeypatch):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(controller, "scheduled", fails)
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1", next_agents={"run0": 1.0})
    assert "could not be used" in caplog.text
    waits, before_s = call(engine, "run1", 1), engine.clock.now()
    while waits.reason is None:
        if not engine.step():
            engine.clock.advance(POLL_INTERVAL_S)
    assert (
        engine.clock.now() - before_s < admission_control.MIN_SLICE_S
    )  # the other run idles for long


def throttle(engine, active, throttled, **rest):
    """Make one run active and throttle the other; the limit admits one.

    Args:
        rest: hints of the last call of the active run.
    """
    for name in (active, throttled):
        call(engine, name)
        run(engine)
    ends = call(engine, active, 1, **rest)
    engine.controller._gate._control._limit = PROMPT // PAGE
    engine.clock.advance(POLL_INTERVAL_S)
    run(engine)
    assert ends.reason is not None


class PausedClock(VirtualClock):
    """A wait with a timeout lasts until the test resumes the clock."""

    def __init__(self):
        super().__init__()
        self.is_waiting_for_time, self.resume = threading.Event(), threading.Event()

    def wait(self, event, timeout_s=None):
        if timeout_s is None:
            assert event.wait(TIMEOUT_S)
            return
        self.is_waiting_for_time.set()
        assert self.resume.wait(TIMEOUT_S)
        self.advance(timeout_s)


def test_a_queued_run_is_resumed_without_any_other_event():
    clock = PausedClock()
    engine = make(TIME_SLICED, clock=clock)
    throttle(engine, "run0", "run1")
    thread, outputs = EngineThread(engine), queue.SimpleQueue()
    hints = Hints(workflow_id="run1", agent_id="run1", num_fixed=PROMPT)
    prompt = np.array([11] * PROMPT + [5])
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    before_s = clock.now()
    thread.submit(RequestSpec(prompt, params, hints=hints), outputs.put)
    assert clock.is_waiting_for_time.wait(TIMEOUT_S)  # no other event will come
    assert thread.stats.num_runs_held_back == 1
    assert outputs.empty()
    clock.resume.set()
    while (output := outputs.get(timeout=TIMEOUT_S)).finish_reason is None:
        pass
    assert output.finish_reason is FinishReason.LENGTH
    assert (
        clock.now() - before_s < admission_control.MIN_SLICE_S
    )  # the other run had idled for long
    thread.check_integrity()
    thread.close()
