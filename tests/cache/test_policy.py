"""Eviction policies as pure functions of the block table."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import SUFFIX, BlockTable, HostState
from kvflow_jax.cache.policy import POLICIES, kvflow, kvflow_cost, lru
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, UNKNOWN_STEPS


def table_of(steps, *, last_use=None, depth=None, on_host=()):
    """A table with a node of one block for each of ``steps``."""
    num = len(steps)
    table = BlockTable(num, num)
    table.head[:] = np.arange(num)
    table.steps[:] = steps
    table.last_use[:] = np.arange(num) if last_use is None else last_use
    if depth is not None:
        table.depth[:] = depth
    table.host_state[list(on_host)] = HostState.VALID
    return table


def eviction_order(order, table):
    keys = order(table, np.arange(len(table.head)))
    return sorted(range(len(keys)), key=lambda block: keys[block].tolist())


def test_lru_orders_by_last_use_and_kvflow_by_steps():
    table = table_of([1.0, 3.0, SUFFIX, 2.0], last_use=[4.0, 3.0, 2.0, 1.0])
    assert eviction_order(lru, table) == [3, 2, 1, 0]
    assert eviction_order(kvflow, table) == [2, 1, 3, 0]


def test_blocks_without_a_coming_read_are_evicted_first_whatever_they_cost():
    steps = [1.0, NEVER_STEPS, SUFFIX, UNKNOWN_STEPS, 2.0, 0.0]
    assert eviction_order(kvflow_cost, table_of(steps)) == [2, 1, 3, 4, 0, 5]


def test_an_unlikely_next_read_is_evicted_before_a_certain_later_one():
    unlikely_next, certain_later = 1.0 + 0.4 * 0.9, 4.0
    table = table_of([unlikely_next, certain_later])
    assert eviction_order(kvflow, table) == [1, 0]
    assert eviction_order(kvflow_cost, table) == [0, 1]
    assert eviction_order(kvflow_cost, table_of([1.5 + 0.4 * 0.9, 4.0])) == [0, 1]  # other branch


def test_blocks_that_are_cheap_to_recompute_are_evicted_first():
    deep = table_of([3.0, 2.0], depth=[2000, 0])
    assert eviction_order(kvflow_cost, deep) == [1, 0]


@pytest.mark.parametrize("name", POLICIES)
def test_the_key_of_a_block_does_not_depend_on_the_other_blocks(name):
    table = table_of([1.0, 2.5, SUFFIX, NEVER_STEPS], on_host=[1])
    blocks = np.array([3, 1], np.int32)
    keys = POLICIES[name](table, blocks)
    assert keys.shape[0] == 2
    assert np.array_equal(keys, POLICIES[name](table, np.arange(4))[[3, 1]])
