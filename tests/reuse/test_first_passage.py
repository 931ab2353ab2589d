"""First passage over a chain of calls, against a simulation of it."""

import random

import pytest

from kvflow_jax.reuse.first_passage import MAX_STATES, MAX_STEPS, FirstPassages, Step
from kvflow_jax.reuse.predictor import HORIZON, MIN_CHANCE


def chain(table):
    """A chain whose states are its agents."""

    def steps_of(state):
        return [Step(agent, chance, agent) for agent, chance in table.get(state, {}).items()]

    return steps_of


def test_in_a_ring_each_agent_has_one_certain_distance():
    ring = chain({number: {(number + 1) % 10: 1.0} for number in range(10)})
    passages = FirstPassages(0, ring)
    for start in range(10):
        found = passages.of(start)
        for agent, steps in found.items():
            distance = (agent - start) % 10 or 10
            assert steps[distance - 1] == 1.0
            assert sum(steps) == 1.0


def test_the_distribution_is_that_of_a_simulation():
    table = {
        "product": {"architect": 1.0},
        "architect": {"coder": 1.0},
        "coder": {"reviewer": 1.0},
        "reviewer": {"tester": 0.6, "coder": 0.4},
        "tester": {"product": 0.7, "coder": 0.2},  # or the run ends
    }
    passages = FirstPassages("coder", chain(table))
    rng, counts, num_runs = random.Random(0), {}, 20_000
    for _ in range(num_runs):
        state, seen = "coder", set()
        for step in range(HORIZON):
            draw, following = rng.random(), None
            for agent, chance in table[state].items():
                if draw < chance:
                    following = agent
                    break
                draw -= chance
            if following is None:
                break
            if following not in seen:
                seen.add(following)
                row = counts.setdefault(following, [0] * HORIZON)
                row[step] += 1
            state = following
    found = passages.of("coder")
    assert found.keys() == counts.keys()
    for agent, row in counts.items():
        assert found[agent] == pytest.approx([count / num_runs for count in row], abs=0.015)


def test_an_agent_that_calls_itself_for_ever_is_next():
    found = FirstPassages("a", chain({"a": {"a": 1.0}})).of("a")
    assert found == {"a": (1.0, *[0.0] * (HORIZON - 1))}


def test_a_state_without_steps_has_no_forecast():
    assert FirstPassages("a", chain({})).of("a") == {}


def test_unlikely_agents_are_left_out():
    found = FirstPassages("a", chain({"a": {"b": 0.99, "c": MIN_CHANCE / 2}})).of("a")
    assert found.keys() == {"b"}


def test_unlikely_states_are_simplified_and_not_lost():
    """Pairs of agents: what follows depends on the last alone, but there are many states."""
    agents = [f"a{number}" for number in range(8)]

    def steps_of(state):
        return [Step(agent, 1 / 8, (state[-1], agent)) for agent in agents]

    passages = FirstPassages(("", "start"), steps_of, lambda state: (None, state[-1]))
    found = passages.of(("", "start"))
    geometric = [1 / 8 * (7 / 8) ** k for k in range(HORIZON)]
    for agent in agents:
        assert found[agent] == pytest.approx(geometric, rel=1e-3)


def test_the_work_is_bounded_in_wide_and_in_long_chains():
    asked = []

    def steps_of(state):
        asked.append(state)
        return [Step(f"{state}{digit}", 0.1, f"{state}{digit}") for digit in range(10)]

    passages = FirstPassages("", steps_of)
    assert len(asked) <= min(MAX_STATES, MAX_STEPS / 10)
    assert passages.of("").keys() >= set("0123456789")
    assert passages.of("0") is None  # what follows it was not all looked at
    assert passages.of("other") is None
    long = FirstPassages(0, lambda state: [Step(str(state), 1.0, state + 1)])
    assert len(long.of(0)) == HORIZON
