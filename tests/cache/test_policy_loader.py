"""Policies from outside the package: found by name, tried on a small table, checked when called."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import BlockTable
from kvflow_jax.cache.policy import POLICIES, BlockFacts, kvflow, lru
from kvflow_jax.cache.policy_loader import CheckedOrder, check_policy, find_policy
from kvflow_jax.errors import ConfigError, PolicyError

HERE = "tests.cache.test_policy_loader"


def first_used(facts):
    return lru(facts)


def one_axis(facts):
    return facts.last_use


def no_columns(facts):
    return np.empty((len(facts), 0))


def a_row_short(facts):
    return lru(facts)[1:]


def not_a_number(facts):
    return np.full((len(facts), 1), np.nan)


def text(facts):
    return np.full((len(facts), 1), "soon")


def ragged(facts):
    return [[1.0] * i for i in range(len(facts))]


def raises(facts):
    return facts.no_such_fact


def by_rank(facts):
    return np.argsort(facts.last_use)[:, None]


class Fails:
    """A policy that is valid until it is told to fail."""

    is_failing = False

    def __call__(self, facts):
        if self.is_failing:
            raise ZeroDivisionError("no blocks")
        return lru(facts)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_of_the_package_is_used_as_it_is(name):
    assert find_policy(name) is POLICIES[name]
    assert find_policy(POLICIES[name]) is POLICIES[name]
    check_policy(name)


@pytest.mark.parametrize("policy", [f"{HERE}:first_used", first_used])
def test_a_policy_from_outside_is_found_by_name_or_given_as_a_function(policy):
    check_policy(policy)
    order = find_policy(policy)
    assert isinstance(order, CheckedOrder)
    assert order.name == f"{HERE}:first_used"
    table = BlockTable(3, 3)
    facts = BlockFacts(table, table.allocate(3, now=2.0))
    assert np.array_equal(order(facts), lru(facts))
    assert not np.array_equal(order(facts), kvflow(facts))


@pytest.mark.parametrize(
    "name", ["no_such_module:order", f"{HERE}:nothing", f"{HERE}:HERE", "tests..x:order"]
)
def test_a_name_that_is_no_function_is_an_error(name):
    with pytest.raises(PolicyError, match=f"the eviction policy '{name}'"):
        check_policy(name)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_axis", r"must return numbers of shape \[6, any\].*returned float64\[6\]"),
        ("no_columns", r"returned float64\[6, 0\]"),
        ("a_row_short", r"returned float64\[5, 1\]"),
        ("not_a_number", "no NaN"),
        ("text", r"returned <U4\[6, 1\]"),
        ("ragged", "failed: ValueError"),
        ("raises", "failed: AttributeError: .*no_such_fact"),
        ("by_rank", "gives a block another key beside other blocks"),
    ],
)
def test_a_policy_with_invalid_keys_is_refused_by_name(function, message):
    with pytest.raises(PolicyError, match=f"the eviction policy {HERE}:{function} .*{message}"):
        check_policy(f"{HERE}:{function}")
    assert issubclass(PolicyError, ConfigError)


def test_a_policy_that_fails_later_is_an_error_that_names_it():
    policy = Fails()
    check_policy(policy)
    order, table = find_policy(policy), BlockTable(3, 3)
    policy.is_failing = True
    with pytest.raises(PolicyError, match=r"policy_loader.*Fails.* failed: ZeroDivisionError: no"):
        order(BlockFacts(table, table.allocate(1, now=0.0)))
