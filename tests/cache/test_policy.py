"""Eviction policies as pure functions of facts of blocks."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import BlockTable, HostState
from kvflow_jax.cache.next_read import NEVER, RUNNING, SUFFIX, UNKNOWN, scheduled
from kvflow_jax.cache.policy import POLICIES, BlockFacts, kvflow, kvflow_cost, lru


def table_of(reads, *, last_use=None, depth=None, on_host=()):
    """A table with a node of one block for each of ``reads``."""
    num = len(reads)
    table = BlockTable(num, num)
    table.head[:] = np.arange(num)
    table.next_read[:] = reads
    table.last_use[:] = np.arange(num) if last_use is None else last_use
    if depth is not None:
        table.depth[:] = depth
    table.host_state[list(on_host)] = HostState.VALID
    return table


def eviction_order(order, table):
    keys = order(BlockFacts(table, np.arange(len(table.head))))
    return sorted(range(len(keys)), key=lambda block: keys[block].tolist())


def test_lru_orders_by_last_use_and_kvflow_by_steps():
    table = table_of(
        [scheduled(1.0), scheduled(3.0), SUFFIX, scheduled(2.0)], last_use=[4.0, 3.0, 2.0, 1.0]
    )
    assert eviction_order(lru, table) == [3, 2, 1, 0]
    assert eviction_order(kvflow, table) == [2, 1, 3, 0]


def test_blocks_without_a_coming_read_are_evicted_first_whatever_they_cost():
    throttled = scheduled(1.0).throttled()
    reads = [scheduled(1.0), NEVER, SUFFIX, UNKNOWN, scheduled(2.0), RUNNING, throttled]
    assert eviction_order(kvflow_cost, table_of(reads)) == [2, 1, 6, 3, 4, 0, 5]


def test_an_unlikely_next_read_is_evicted_before_a_certain_later_one():
    unlikely_next, certain_later = scheduled(1.0, chance=0.1), scheduled(4.0)
    table = table_of([unlikely_next, certain_later])
    assert eviction_order(kvflow, table) == [1, 0]
    assert eviction_order(kvflow_cost, table) == [0, 1]
    other_branch = unlikely_next._replace(skips_prefetch=True)
    assert eviction_order(kvflow_cost, table_of([other_branch, certain_later])) == [0, 1]


def test_blocks_that_are_cheap_to_recompute_are_evicted_first():
    deep = table_of([scheduled(3.0), scheduled(2.0)], depth=[2000, 0])
    assert eviction_order(kvflow_cost, deep) == [1, 0]


@pytest.mark.parametrize("name", POLICIES)
def test_the_key_of_a_block_does_not_depend_on_the_other_blocks(name):
    table = table_of([scheduled(1.0), scheduled(2.0, chance=0.5), SUFFIX, NEVER], on_host=[1])
    blocks = np.array([3, 1], np.int32)
    keys = POLICIES[name](BlockFacts(table, blocks))
    assert keys.shape[0] == 2
    assert np.array_equal(keys, POLICIES[name](BlockFacts(table, np.arange(4)))[[3, 1]])


def test_facts_have_a_row_for_each_block():
    reads = [scheduled(2.0, chance=0.25), UNKNOWN]
    facts = BlockFacts(table_of(reads, depth=[7, 8]), np.array([1, 0], np.int32))
    assert len(facts) == 2
    assert facts.kind.tolist() == [UNKNOWN.kind, RUNNING.kind]
    assert facts.distance.tolist() == [0.0, 2.0]
    assert facts.chance.tolist() == [1.0, 0.25]
    assert facts.last_use.tolist() == [1.0, 0.0]
    assert facts.depth.tolist() == [8, 7]
    assert facts.generation.tolist() == [0, 0]
