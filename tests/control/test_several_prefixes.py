"""Agents with more than one fixed prefix, in an engine that is too small for all of them."""

import pytest

from kvflow_jax.control.agent_prefixes import AGENT_TTL_S, MAX_PREFIXES
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.agent_cycle import ManualClock
from tests.support.token_runner import Client, make_engine, run

NUM_FIXED, PAGE = 32, 4
GRAPH = Workflow().edge("solver", "critic").edge("critic", "solver").freeze()


def call(engine, prompt, agent="solver", workflow_id="run", num_fixed=None):
    """Run a call to its end; return how many tokens of its prompt were cached."""
    hints = Hints(workflow_id=workflow_id, agent_id=agent, graph=GRAPH, num_fixed=num_fixed)
    client = Client(engine, prompt, max_tokens=2, hints=hints)
    run(engine)
    assert client.tokens == client.cold
    engine.check_integrity()
    return client.stats.num_cached_tokens


def chat(engine, turn):
    """Run a chat without hints, which wants blocks, too."""
    Client(engine, [turn % 40, turn // 40, 48] * 12, max_tokens=2)
    run(engine)


def small_engine():
    cache = CacheSettings(eviction="kvflow", safeguards=False)
    return make_engine(num_pages=40, max_model_len=64, cache=cache)


@pytest.mark.parametrize("num_fixed", [None, NUM_FIXED], ids=["learned", "declared"])
def test_an_agent_that_alternates_between_two_templates_keeps_both(num_fixed):
    engine = small_engine()
    templates = [[11] * NUM_FIXED, [12] * NUM_FIXED]
    cached = []
    for turn in range(12):
        cached.append(call(engine, [*templates[turn % 2], turn, 48], num_fixed=num_fixed))
        for i in range(3):
            chat(engine, 3 * turn + i)
    assert cached[6:] == [NUM_FIXED] * 6


@pytest.mark.parametrize("num_fixed", [None, NUM_FIXED], ids=["learned", "declared"])
def test_a_role_whose_prompt_differs_by_run_keeps_that_of_each_run(num_fixed):
    engine = small_engine()
    tickets = {f"run{i}": [11] * 16 + [20 + i] * 16 for i in range(2)}
    cached = []
    for turn in range(10):
        for workflow_id, ticket in tickets.items():
            prompt = [*ticket, turn, 48]
            cached.append(call(engine, prompt, workflow_id=workflow_id, num_fixed=num_fixed))
        for i in range(3):
            chat(engine, 3 * turn + i)
    assert cached[8:] == [NUM_FIXED] * 12


def test_a_new_run_finds_what_the_runs_before_it_shared():
    engine = small_engine()
    shared = [11] * NUM_FIXED
    for i in range(6):
        cached = call(engine, [*shared, 20 + i, 48], workflow_id=f"run{i}")
        for j in range(3):
            chat(engine, 3 * i + j)
    assert cached == NUM_FIXED


def test_calls_at_once_of_more_prefixes_than_are_kept_leave_no_reader_behind():
    engine = make_engine(num_pages=200, cache=CacheSettings(eviction="kvflow"))
    for i in range(2 * MAX_PREFIXES):
        Client(engine, [i] * PAGE + [3], hints=Hints(agent_id="solver", num_fixed=PAGE))
    run(engine)
    assert len(engine.cache._readers) == MAX_PREFIXES


def test_an_agent_that_is_forgotten_while_its_call_waits_has_no_reader():
    cache = CacheSettings(eviction="kvflow", admission_control=True)
    engine = make_engine(cache=cache, clock=ManualClock())
    Client(engine, [11] * PAGE + [3], hints=Hints(agent_id="solver", num_fixed=PAGE))
    engine.clock.time_s = AGENT_TTL_S
    run(engine)
    assert len(engine.cache._readers) == 0
    assert not engine.controller._gate._control._working_sets._hashes
