"""The variable-order model: what it learns, how fast, and when it keeps silent."""

import json
import math
import random

import pytest

from kvflow_jax.reuse.context_tree import ContextTree
from kvflow_jax.reuse.predictor import HORIZON, MIN_CHANCE


def play(tree, calls, *, delay_s=1.0):
    """Let a tree see the calls of one run; return whether it expected each."""
    history, hits = [], []
    for agent in calls:
        hits.append(tree.expects(history) == agent)
        tree.observe(history, agent, delay_s)
        history.append(agent)
    return hits


def team(rng, num_calls):
    calls = []
    while len(calls) < num_calls:
        calls += ["product", "architect"]
        while True:
            calls += ["coder", "reviewer"]
            if rng.random() < 0.4:
                continue
            calls.append("tester")
            if rng.random() < 0.8:
                break
    return calls[:num_calls]


def branching(rng, num_calls):
    """A choice, and three readers side by side in an order that varies."""
    calls = []
    while len(calls) < num_calls:
        readers = ["read0", "read1", "read2"]
        rng.shuffle(readers)
        calls += ["plan", "search" if rng.random() < 0.7 else "recall", *readers, "write"]
    return calls[:num_calls]


def test_a_ring_is_known_after_two_rounds_with_its_distances():
    ring = [f"agent{number}" for number in range(10)]
    tree = ContextTree()
    assert all(play(tree, ring * 4)[21:])
    forecast = tree.forecast(ring)
    assert forecast.keys() == set(ring)
    for distance, agent in enumerate(ring):
        assert forecast[agent].steps[distance] == pytest.approx(1.0)
        assert forecast[agent].mean_steps == pytest.approx(distance + 1)
    assert forecast["agent0"].delay.quantile(0.5) == pytest.approx(1.0, rel=0.01)
    assert forecast["agent1"].delay is None


# What the workload's own chances allow: 6.33 of 7.42 calls, and (0.7 + 1/3 + 1/2 + 3) of 6.
@pytest.mark.parametrize(("workload", "best"), [(team, 0.854), (branching, 0.756)])
def test_the_next_agent_is_right_as_often_as_chance_allows_after_50_calls(workload, best):
    shares = []
    for seed in range(20):
        hits = play(ContextTree(), workload(random.Random(seed), 250))
        shares.append(sum(hits[150:]) / 100)
    assert sum(shares) / len(shares) >= 0.95 * best


def test_chances_are_those_of_the_workload():
    tree = ContextTree()
    calls = team(random.Random(0), 1500)
    play(tree, calls)
    tester = tree.forecast(["product", "architect", "coder", "reviewer"])["tester"]
    assert tester.steps[0] == pytest.approx(0.6, abs=0.15)
    assert tester.steps[1] == 0.0
    assert tester.steps[2] == pytest.approx(0.4 * 0.6, abs=0.1)


def test_the_next_calls_are_the_first_step_of_the_forecast(monkeypatch):
    tree = ContextTree()
    for run in range(5):
        play(tree, team(random.Random(run), 100), delay_s=4.0)
    expected = {}
    for history in ([], ["coder", "reviewer"], ["tester"], ["coder", "tester"]):
        forecast = tree.forecast(history)
        first = {agent: (one.steps[0], one.delay) for agent, one in forecast.items()}
        expected[tuple(history)] = {agent: one for agent, one in first.items() if one[0]}
    monkeypatch.setattr("kvflow_jax.reuse.context_tree.FirstPassages", None)
    for history, first in expected.items():
        found = tree.next_calls(history)
        assert found.keys() == first.keys()
        for agent, (chance, delay) in found.items():
            assert chance == pytest.approx(first[agent][0], abs=0.05)
            assert delay == first[agent][1]
    assert tree.next_calls(["reviewer"])["tester"].delay.quantile(0.5) == pytest.approx(4.0)
    assert tree.next_calls(["unknown"]) == {}
    assert ContextTree().next_calls([]) == {}


def test_order_two_is_learned_where_the_last_agent_leaves_a_choice():
    tree = ContextTree()
    hits = play(tree, ["a", "x", "b", "c", "x", "d"] * 20)
    assert all(hits[40:])
    assert tree.forecast(["a", "x"])["b"].steps[0] > 0.9


def test_the_set_of_branches_that_have_called_says_what_is_left():
    tree = ContextTree()
    play(tree, branching(random.Random(0), 240))
    for order in (["read0", "read1", "read2"], ["read2", "read0", "read1"]):
        assert tree.expects(["search", *order]) == "write"
        assert tree.expects(["search", *order[:2]]) == order[2]


def test_the_first_agent_of_a_run_is_learned():
    tree = ContextTree()
    for _ in range(20):
        play(tree, ["plan", "work", "report"])
    assert tree.expects([]) == "plan"
    assert tree.forecast([])["report"].steps[2] == pytest.approx(1.0)
    assert tree.forecast(["work", "report"]) == {}  # nothing ever followed


def test_a_rewired_graph_is_relearned_within_tens_of_calls():
    ring = [f"agent{number}" for number in range(10)]
    other = [ring[number * 3 % 10] for number in range(10)]
    tree = ContextTree()
    play(tree, ring * 30)
    hits = play(tree, other * 10)
    assert sum(hits[40:]) >= 0.95 * len(hits[40:])


@pytest.mark.parametrize("num_agents", [5, 10, 40])
def test_a_shuffle_is_not_forecast(num_agents):
    rng, tree = random.Random(0), ContextTree()
    names = [f"agent{number}" for number in range(num_agents)]
    history, num_forecasts = [], 0
    for number in range(1000):
        num_forecasts += number >= 100 and bool(tree.forecast(history))
        agent = rng.choice(names)
        tree.observe(history, agent, 1.0)
        history = [*history[-8:], agent]
    assert num_forecasts < 0.05 * 900


def test_a_forecast_is_kept_while_nothing_changes(monkeypatch):
    tree = ContextTree()
    play(tree, ["a", "b", "c"] * 30)
    tree.forecast(["a", "b"])
    monkeypatch.setattr("kvflow_jax.reuse.context_tree.FirstPassages", None)
    for history in (["a", "b"], ["b", "c"], ["c", "a"]):
        tree.observe(history, {"b": "c", "c": "a", "a": "b"}[history[-1]], 1.0)
        assert tree.forecast(history)


def test_chances_are_distributions():
    rng, tree = random.Random(3), ContextTree()
    calls = [call for _ in range(30) for call in (*team(rng, 9), *branching(rng, 7))]
    history = []
    for agent in calls:
        forecast = tree.forecast(history)
        assert sum(one.steps[0] for one in forecast.values()) <= 1 + 1e-5
        for one in forecast.values():
            assert len(one.steps) == HORIZON
            assert min(one.steps) >= 0
            assert MIN_CHANCE <= one.chance <= 1 + 1e-5
        tree.observe(history, agent, rng.expovariate(1.0))
        history.append(agent)


def test_an_agent_that_calls_itself_for_ever_is_expected():
    tree = ContextTree()
    play(tree, ["other", *["self"] * 3000])
    # Where one agent makes all calls its frequency says as much, and nothing is to be gained.
    assert tree.forecast(["self"] * 3).keys() <= {"self"}


@pytest.mark.parametrize("delay_s", [math.nan, math.inf, -math.inf, -3.0, 0.0, 1e300])
def test_a_delay_that_is_none_does_not_spoil_the_order(delay_s):
    tree = ContextTree()
    play(tree, ["a", "b", "c"] * 20, delay_s=delay_s)
    forecast = tree.forecast(["a"])
    assert forecast["b"].steps[0] == pytest.approx(1.0)
    delay = forecast["b"].delay
    assert delay is None or 0 < delay.quantile(0.9) < 1e7


def test_names_that_are_none_are_not_learned():
    tree = ContextTree()
    for _ in range(20):
        play(tree, ["a", "", "b", "x" * 1000])
    assert tree.num_agents == 2
    assert tree.forecast(["", "", ""]) == {}
    assert tree.expects(["x" * 1000]) is None


def test_a_long_history_costs_as_much_as_a_short_one():
    tree = ContextTree()
    calls = ["a", "b", "c"] * 4000
    play(tree, calls[:60])
    assert tree.forecast(calls) == tree.forecast(calls[-3:])
    num_bytes = tree.num_bytes
    tree.observe(calls, "a", 1.0)
    assert tree.num_bytes == num_bytes


def test_what_was_learned_can_be_shown():
    tree = ContextTree()
    play(tree, team(random.Random(0), 200), delay_s=2.0)
    rows = tree.transitions(100)
    assert [row.num_seen for row in rows] == sorted((row.num_seen for row in rows), reverse=True)
    (row,) = [row for row in rows if (row.context, row.agent) == (("reviewer",), "tester")]
    assert row.chance == pytest.approx(0.6, abs=0.2)
    assert row.delay.quantile(0.5) == pytest.approx(2.0, rel=0.01)
    assert len(tree.transitions(3)) == 3


def test_a_forgotten_agent_is_forecast_no_more():
    tree = ContextTree()
    play(tree, team(random.Random(0), 200))
    assert "tester" in tree.forecast(["reviewer"])
    tree.forget("tester")
    assert "tester" not in tree.forecast(["reviewer"])
    assert all("tester" not in (*row.context, row.agent) for row in tree.transitions(10_000))


def test_the_state_survives_json():
    tree = ContextTree()
    calls = branching(random.Random(0), 300)
    play(tree, calls)
    again = ContextTree.from_rows(json.loads(json.dumps(list(tree.rows()))))
    assert again.num_agents == tree.num_agents
    assert again.num_bytes == pytest.approx(tree.num_bytes, rel=0.1)
    for history in (["plan"], ["plan", "search"], ["search", "read1", "read0"], ["write"]):
        before, after = tree.forecast(history), again.forecast(history)
        assert before.keys() == after.keys()
        for agent in before:
            assert after[agent].steps == pytest.approx(before[agent].steps, abs=0.05)
    hits = play(again, branching(random.Random(1), 120))
    assert sum(hits) / len(hits) > 0.6


@pytest.mark.parametrize(
    "row",
    [
        None,
        3,
        [],
        ["agent"],
        ["agent", "a", -1.0],
        ["agent", "a", math.nan],
        ["agent", "a", "1"],
        ["agent", 7, 1.0],
        ["other", "a", 1.0],
        ["context", ["a", "b", "c", "d"], []],
        ["context", "a", []],
        ["context", ["a"], None],
        ["all", 0.5, []],
        ["all", math.inf, ContextTree().rows().__next__()[2]],
        ["all", [], []],
    ],
)
def test_another_state_is_refused(row):
    tree = ContextTree()
    play(tree, ["a", "b", "c"] * 5)
    with pytest.raises(ValueError):  # noqa: PT011 (each says what is wrong)
        ContextTree.from_rows([*tree.rows(), row])


def test_it_may_learn_between_two_rows():
    tree = ContextTree()
    calls = branching(random.Random(0), 400)
    play(tree, calls[:100])
    rows = []
    for number, row in enumerate(tree.rows()):
        rows.append(json.loads(json.dumps(row)))
        tree.observe(calls[: 100 + number], calls[100 + number], 1.0)
    again = ContextTree.from_rows(rows)
    assert again.expects(["read0", "read1", "read2"]) == "write"
