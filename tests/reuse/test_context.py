"""What follows one context."""

import math
import random

import pytest

from kvflow_jax.reuse.context import MAX_SUCCESSORS, MAX_VISITS, Context


def learned(agents, *, has_delays=False, delay_s=1.0):
    context = Context(has_delays=has_delays)
    for agent in agents:
        if len(context):
            chance = max(0.01, context.share(agent))
            context.score(chance, 0.1)
        context.learn(agent, delay_s)
    return context


def test_shares_are_those_of_recent_visits():
    rng = random.Random(0)
    context = learned(rng.choices("ab", [0.7, 0.3], k=400))
    assert context.share("a") == pytest.approx(0.7, abs=0.15)
    assert sum(share for _, share in context.shares()) == pytest.approx(1.0)
    assert context.share("c") == context.num_seen("c") == 0.0
    assert context.visits == MAX_VISITS


def test_two_calls_that_were_ruled_out_outweigh_all_before():
    assert learned("a" * 100 + "b").share("b") < 0.1
    assert learned("a" * 100 + "bb").share("b") > 0.6
    rewired = learned("a" * 100 + "bcbccb")
    assert rewired.share("a") < 0.2


def test_chance_raises_no_alarm():
    rng = random.Random(1)
    context = Context(has_delays=False)
    shares = []
    for agent in rng.choices("abcd", [0.5, 0.3, 0.15, 0.05], k=3000):
        if len(context):
            context.score(max(0.01, context.share(agent)), 0.25)
        context.learn(agent, 1.0)
        shares.append(context.share("a"))
    assert min(shares[200:]) > 0.25


def test_the_gain_is_over_the_shorter_context():
    better, worse = learned("ab" * 4), learned("ab" * 4)
    for _ in range(20):
        better.score(0.9, 0.5)
        worse.score(0.4, 0.5)
    assert better.gain > 0 > worse.gain


def test_the_version_rises_when_chances_change_and_not_when_they_are_confirmed():
    context = learned("a" * 20)
    version = context.version
    for _ in range(500):
        context.score(1.0, 0.1)
        context.learn("a", 1.0)
    assert context.version == version
    context.learn("b", 1.0)
    assert context.version > version


def test_the_weights_stay_finite_over_many_visits():
    context = learned("a" * 30_000 + "b")
    assert context.share("a") > 0.9
    assert math.isfinite(context.num_seen("a"))
    assert context.num_seen("a") < 70


def test_the_number_of_successors_is_bounded_and_the_frequent_ones_are_kept():
    context = learned([agent for number in range(5000) for agent in ("often", str(number))])
    assert len(context) <= MAX_SUCCESSORS
    assert context.share("often") > 0.3
    assert context.num_bytes < 4000


def test_delays_are_kept_by_successor_where_they_are_wanted():
    context = learned("aaa", has_delays=True, delay_s=3.0)
    context.learn("b", math.nan)
    assert context.delay("a").quantile(0.5) == pytest.approx(3.0, rel=0.01)
    assert context.delay("b") is context.delay("c") is None
    assert learned("aaa").delay("a") is None


def test_a_successor_can_be_forgotten():
    context = learned("abab", has_delays=True)
    version = context.version
    context.forget("a")
    context.forget("never")
    assert context.shares() == [("b", 1.0)]
    assert context.version > version


@pytest.mark.parametrize("has_delays", [True, False])
def test_the_state_survives_a_round_trip(has_delays):
    context = learned("aabacab" * 9, has_delays=has_delays)
    again = Context.from_list(context.to_list(), has_delays=has_delays)
    assert again.shares() == [
        (agent, pytest.approx(share, abs=1e-3)) for agent, share in context.shares()
    ]
    assert again.visits == context.visits
    assert (again.delay("b") is None) is not has_delays
    again.learn("b", 1.0)
    assert again.share("b") > context.share("b")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (0, 0),
        (0, True),
        (0, 10**9),
        (1, math.nan),
        (2, "1"),
        (3, []),
        (3, ["a", "a"]),
        (3, ["a", 2]),
        (4, [1.0]),
        (4, [-1.0, 1.0, 0.0, 0.0] * 2),
        (4, [1.0, -1.0, 0.0, 0.0] * 2),
        (4, [1.0, 1.0, 0.0, -1.0] * 2),
        (4, [1.0, 1.0, math.inf, 0.0] * 2),
        (4, None),
    ],
)
def test_another_state_is_refused(entry, value):
    state = learned("abab", has_delays=True).to_list()
    state[entry] = value
    with pytest.raises(ValueError, match=r"context|weight|visits|expected"):
        Context.from_list(state, has_delays=True)
    with pytest.raises(ValueError, match="five"):
        Context.from_list(state[:-1], has_delays=True)
