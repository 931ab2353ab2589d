"""Runs that take turns where not all fit, through the engine: in virtual time, and behind a thread.

The cache holds three of the six prefixes that are read in turns.
"""

import queue
import threading

import numpy as np
import pytest

from kvflow_jax.control import cost_model
from kvflow_jax.control.admission import admission_control
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine_thread import POLL_INTERVAL_S, EngineThread
from kvflow_jax.errors import StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.workflow.hints import Hints, Reuse
from tests.support.token_runner import Client, make_engine, run

TIME_SLICED = CacheSettings(eviction="kvflow-cost", admission_control=True)
ALL_AT_ONCE = CacheSettings(eviction="kvflow-cost")
RUNS = [f"run{i}" for i in range(6)]
PROMPT, PAGE = 32, 4
TOKEN_S = 0.02  # of a prompt
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _short_prompts_tell_what_they_cost(monkeypatch):
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


def live(engine, num_calls=30):
    """Let each run call again and again; tokens computed, and the most runs held back at once."""
    clients = {name: [call(engine, name)] for name in RUNS}
    most_held = 0
    while not all(len(own) == num_calls and own[-1].reason for own in clients.values()):
        is_busy = engine.step()
        engine.check_integrity()
        most_held = max(most_held, engine.stats.num_runs_held_back)
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
    return engine.stats.prompt_tokens - engine.stats.cached_prompt_tokens, most_held


def test_runs_that_thrash_take_turns_and_all_end():
    computed, num_held = live(make(ALL_AT_ONCE))
    computed_in_turns, num_held_in_turns = live(make(TIME_SLICED))
    assert num_held == 0
    assert num_held_in_turns > 0
    assert computed_in_turns < 0.75 * computed


def test_runs_that_fit_take_no_turns():
    _, num_held = live(make(TIME_SLICED, num_pages=100))
    assert num_held == 0


def lost_tokens(engine):
    return engine.controller._gate._control._recompute_s


def alone(name, **rest):
    """One call, and again after its prefix was evicted; tokens that count as lost."""
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    lost = []
    for _ in range(2):
        before = lost_tokens(engine)
        call(engine, name, **rest)
        run(engine)
        lost.append(lost_tokens(engine) - before)
        engine.cache.residency.evict(engine.cache.residency.num_idle)
    assert lost[0] == 0
    return lost[1]


def test_what_is_computed_again_is_lost():
    assert alone("run0") == PROMPT
    assert alone("run0", num_fixed=8) == 8
    assert alone("run0", reuse=Reuse.KEEP) == PROMPT  # what was kept ends with it
    assert alone("run0", reuse=Reuse.KEEP, num_fixed=8) == PROMPT
    assert alone("run0", session_id="s", num_fixed=8) == PROMPT


def test_the_last_token_is_computed_in_any_case():
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    for _ in range(3):
        hints = Hints(workflow_id="run", agent_id="agent", num_fixed=PROMPT)
        Client(engine, [9] * PROMPT, max_tokens=1, hints=hints)
        run(engine)
    assert lost_tokens(engine) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_failure_or_a_flush_has_dropped_is_nobodys_loss(fails):
    engine = make(TIME_SLICED)
    engine.cost_model.compute_s = float
    for name in RUNS[:2]:
        call(engine, name)
        run(engine)
    if fails:
        engine.fail_all(StepFailedError("injected"))
    else:
        assert engine.flush_cache()
    before = lost_tokens(engine)
    call(engine, "run0")
    run(engine)
    assert lost_tokens(engine) == before
    engine.cache.residency.evict(engine.cache.residency.num_idle)
    call(engine, "run0")
    run(engine)
    assert lost_tokens(engine) == before + PROMPT


def test_a_call_that_is_aborted_while_it_waits_leaves_its_run_as_it_was():
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


def test_a_run_that_ends_while_others_wait_makes_room():
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1")
    waits = call(engine, "run1", 1)
    engine.step()
    assert waits.reason is None
    engine.controller.end_run("", "run0")
    engine.clock.advance(POLL_INTERVAL_S)
    run(engine)
    assert waits.tokens == waits.cold


def test_what_a_run_of_the_same_name_calls_waits_for_nobody():
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


def test_a_call_whose_hints_break_something_has_ended_all_the_same(caplog):
    engine = make(TIME_SLICED)
    throttle(engine, "run0", "run1", next_agents=["run0"])
    assert "could not be used" in caplog.text
    waits, before_s = call(engine, "run1", 1), engine.clock.now()
    while waits.reason is None:
        if not engine.step():
            engine.clock.advance(POLL_INTERVAL_S)
    assert (
        engine.clock.now() - before_s < admission_control.MIN_SLICE_S
    )  # the other waits, and long


def throttle(engine, active, throttled, **rest):
    """Let one run go on, and the other be throttled, for which there is no room.

    Args:
        rest: of the hints of the active one's last call.
    """
    for name in (active, throttled):
        call(engine, name)
        run(engine)
    ends = call(engine, active, 1, **rest)
    engine.controller._gate._control._limit = PROMPT // PAGE
    engine.clock.advance(POLL_INTERVAL_S)
    run(engine)
    assert ends.reason is not None


class HeldClock(VirtualClock):
    """Whoever waits a while does so until the test lets that while pass."""

    def __init__(self):
        super().__init__()
        self.is_held, self.go_on = threading.Event(), threading.Event()

    def wait(self, event, timeout_s=None):
        if timeout_s is None:
            assert event.wait(PATIENCE_S)
            return
        self.is_held.set()
        assert self.go_on.wait(PATIENCE_S)
        self.advance(timeout_s)


def test_a_queue_that_waits_for_nothing_but_time_moves_by_itself():
    clock = HeldClock()
    engine = make(TIME_SLICED, clock=clock)
    throttle(engine, "run0", "run1")
    thread, news = EngineThread(engine), queue.SimpleQueue()
    hints = Hints(workflow_id="run1", agent_id="run1", num_fixed=PROMPT)
    prompt = np.array([11] * PROMPT + [5])
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    before_s = clock.now()
    thread.submit(prompt, params, news.put, hints=hints)
    assert clock.is_held.wait(PATIENCE_S)  # nothing else will come
    assert thread.stats.num_runs_held_back == 1
    assert news.empty()
    clock.go_on.set()
    while (output := news.get(timeout=PATIENCE_S)).finish_reason is None:
        pass
    assert output.finish_reason is FinishReason.LENGTH
    assert clock.now() - before_s < admission_control.MIN_SLICE_S  # the other had waited for long
    thread.check_integrity()
    thread.close()
