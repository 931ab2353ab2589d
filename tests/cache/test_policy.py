"""Eviction orders, as the pure functions they are."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import SUFFIX, BlockTable, HostState
from kvflow_jax.cache.policy import (
    POLICIES,
    kvflow,
    kvflow_chance,
    kvflow_cost,
    kvflow_depth,
    lru,
)
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, UNKNOWN_STEPS


def table_of(steps, *, last_use=None, depth=None, on_host=()):
    """A node of one block for each of ``steps``."""
    num = len(steps)
    table = BlockTable(num, num)
    table.head[:] = np.arange(num)
    table.steps[:] = steps
    table.last_use[:] = np.arange(num) if last_use is None else last_use
    if depth is not None:
        table.depth[:] = depth
    table.host_state[list(on_host)] = HostState.VALID
    return table


def first_to_last(order, table):
    keys = order(table, np.arange(len(table.head)))
    return sorted(range(len(keys)), key=lambda block: keys[block].tolist())


def test_recency_and_steps():
    table = table_of([1.0, 3.0, SUFFIX, 2.0], last_use=[4.0, 3.0, 2.0, 1.0])
    assert first_to_last(lru, table) == [3, 2, 1, 0]
    assert first_to_last(kvflow, table) == [2, 1, 3, 0]


@pytest.mark.parametrize("order", [kvflow_cost, kvflow_chance, kvflow_depth])
def test_what_nobody_reads_goes_first_whatever_it_costs(order):
    steps = [1.0, NEVER_STEPS, SUFFIX, UNKNOWN_STEPS, 2.0, 0.0]
    assert first_to_last(order, table_of(steps)) == [2, 1, 3, 4, 0, 5]


def test_an_unlikely_next_goes_before_a_certain_later_one():
    unlikely_next, certain_later = 1.0 + 0.4 * 0.9, 4.0
    table = table_of([unlikely_next, certain_later])
    assert first_to_last(kvflow, table) == [1, 0]
    assert first_to_last(kvflow_cost, table) == [0, 1]
    assert first_to_last(kvflow_depth, table) == [1, 0]
    assert first_to_last(kvflow_cost, table_of([1.5 + 0.4 * 0.9, 4.0])) == [0, 1]  # other branch


def test_what_is_cheap_to_have_again_goes_first():
    deep = table_of([3.0, 2.0], depth=[2000, 0])
    assert first_to_last(kvflow_cost, deep) == [1, 0]
    assert first_to_last(kvflow_chance, deep) == [0, 1]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_a_pure_function_of_what_it_is_asked(name):
    table = table_of([1.0, 2.5, SUFFIX, NEVER_STEPS], on_host=[1])
    blocks = np.array([3, 1], np.int32)
    keys = POLICIES[name](table, blocks)
    assert keys.shape[0] == 2
    assert np.array_equal(keys, POLICIES[name](table, np.arange(4))[[3, 1]])
