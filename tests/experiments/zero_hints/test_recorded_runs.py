"""Runs, agents and conversations of recorded apps, recognised without hints."""

import random
from dataclasses import replace

import pytest

from experiments.zero_hints.recorded_runs import (
    FRAMEWORKS,
    PAGE_SIZE,
    RecognisedCall,
    count,
    interleaved,
    recognise,
    recognition_figures,
    share_of_agents,
)
from experiments.zero_hints.recording import FOLDER, Call
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.learned_order import LearnedOrder

RECORDINGS = sorted(FOLDER.glob("*.json"))
MIN_RECALL = {"langgraph": 24 / 28, "autogen": 8 / 11, "adk": 6 / 9}


@pytest.fixture
def order():
    return CallOrder(PAGE_SIZE, LearnedOrder())


def made_call(run, begin_s, prompt, answer=(), agent="agent", app="app"):
    return Call(run, agent, begin_s, begin_s + 0.5, [], [], "", prompt, [*answer], app=app)


def of(framework):
    return [path for path in RECORDINGS if path.stem.startswith(framework)]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_runs_of_a_framework_are_recognised(order, framework):
    counts = count(recognise(interleaved(of(framework)), order))
    assert counts.precision >= 0.99
    assert counts.recall >= MIN_RECALL[framework]


def test_runs_of_all_frameworks_at_once_are_recognised():
    figures = recognition_figures()
    for framework, min_recall in MIN_RECALL.items():
        assert figures[f"{framework}_precision"] >= 0.99
        assert figures[f"{framework}_recall"] >= min_recall
    assert figures["runs_precision"] >= 0.99
    assert all(0 < figure <= 1 for figure in figures.values())


@pytest.mark.parametrize("seed", range(3))
def test_runs_that_begin_at_other_times_are_recognised(order, seed):
    rng = random.Random(seed)
    starts = {}
    calls = []
    for call in interleaved(RECORDINGS):
        late_s = starts.setdefault(call.run, rng.uniform(0, 20))
        calls.append(replace(call, begin_s=call.begin_s + late_s, end_s=call.end_s + late_s))
    counts = count(recognise(sorted(calls, key=lambda call: call.begin_s), order))
    assert counts.precision >= 0.99
    assert counts.recall >= 0.85


def test_most_calls_are_placed_in_their_runs_with_the_help_of_order_and_time(order):
    assert count(recognise(interleaved(RECORDINGS), order)).placed_share >= 0.95


def test_agents_of_a_role_are_one_agent(order):
    recognised = recognise(interleaved(RECORDINGS), order)
    assert share_of_agents(recognised) >= 0.9
    agents = {}
    for one in recognised:
        if one.call.num_system is not None and one.agent is not None:
            agents.setdefault(one.agent, set()).add((one.call.app, one.call.agent))
    assert all(len(roles) == 1 for roles in agents.values())


def test_no_tenant_sees_the_runs_of_another(order):
    calls = interleaved(of("adk"))
    first = recognise(calls, order, "a")
    second = recognise(calls, order, "b")
    assert {one.run for one in first}.isdisjoint(one.run for one in second)


def test_an_answer_is_known_to_the_calls_that_begin_with_its_end_and_to_none_before(order):
    answer = [*range(100, 140)]
    calls = [
        made_call("a", 0.0, [1, 2, 3], answer),
        made_call("a", 0.4, [4, *answer]),
        made_call("a", 0.5, [5, *answer]),
    ]
    recognised = recognise(calls, order)
    assert [one.previous for one in recognised] == [None, None, recognised[0]]


def test_precision_and_recall_are_counted_by_the_true_runs():
    first = RecognisedCall(made_call("a", 0.0, [1]), None, "x", "one")
    second = RecognisedCall(made_call("b", 0.0, [1]), None, "y", "one")
    calls = [
        first,
        second,
        RecognisedCall(made_call("a", 1.0, [1]), first, "x", "one"),
        RecognisedCall(made_call("a", 2.0, [1]), second, "y", "one"),
        RecognisedCall(made_call("b", 2.0, [1]), None, "y", "two"),
        RecognisedCall(made_call("c", 2.0, [1]), None, "x", "two"),
    ]
    counts = count(calls)
    assert (counts.num_later, counts.num_linked, counts.num_right) == (3, 2, 1)
    assert counts.precision == 0.5
    assert counts.recall == pytest.approx(1 / 3)
    assert counts.placed_share == 3 / 6
    assert count(calls[:1]).precision == 1.0


def test_an_agent_of_two_roles_counts_for_one_of_them():
    def one(role, agent):
        return RecognisedCall(made_call("a", 0.0, [1], agent=role), None, "x", agent)

    calls = [one("plan", "p"), one("plan", "p"), one("code", "p"), one("test", None)]
    assert share_of_agents(calls) == 0.5
