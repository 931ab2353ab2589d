"""Eviction from the device: leaves first, in the order of the policy, a run of one node at once."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable, DeviceState
from kvflow_jax.cache.eviction_queue import EvictionQueue
from kvflow_jax.cache.policy import lru
from kvflow_jax.errors import IntegrityError


def paths(*lengths, num_pages=16):
    """A queue over unleased nodes of these many blocks; the last use of a node is its index."""
    table = BlockTable(num_pages, num_pages)
    queue = EvictionQueue(table, lru)
    nodes = []
    for number, length in enumerate(lengths):
        blocks = table.allocate(length, now=float(number))
        table.head[blocks] = blocks[0]
        table.parent[blocks[1:]] = blocks[:-1]
        table.num_children[blocks[:-1]] = 1
        queue.num_idle += length
        queue.enqueue(blocks)
        nodes.append(blocks.tolist())
    return table, queue, nodes


def evict(table, queue, max_blocks):
    """Evict blocks, as the residency does."""
    victims = queue.pop(max_blocks)
    queue.num_idle -= len(victims)
    table.drop_pages(np.array(victims, np.int32))
    table.head[victims] = NO_BLOCK
    return victims


def test_the_leaf_of_the_lowest_key_is_next_and_its_node_follows_from_its_end():
    table, queue, (first, second) = paths(3, 2)
    assert queue.peek() == first[-1]
    assert evict(table, queue, 3) == first[::-1]
    queue.check_integrity()
    assert evict(table, queue, 1) == second[-1:]
    assert queue.peek() == second[0]
    queue.check_integrity()


def test_a_node_is_left_where_the_block_of_another_node_is_next():
    table, queue, (first, second) = paths(3, 2)
    table.last_use[first[0]] = 5.0  # used again, without the rest of its node
    assert evict(table, queue, 8) == [first[2], first[1], *second[::-1], first[0]]
    assert queue.peek() is None


def test_no_block_is_evicted_after_a_leaf_that_is_rejected():
    _, queue, (first, second) = paths(2, 2)
    asked = []
    assert queue.pop(8, lambda leaf: asked.append(leaf) or leaf in first) == first[::-1]
    assert asked == [first[-1], second[-1]]
    assert queue.peek() == second[-1]


def test_leased_and_loading_blocks_and_those_that_are_continued_are_not_evictable():
    table, queue, (first,) = paths(4)
    table.leases[first[2]] = 1
    queue.num_idle -= 1
    assert evict(table, queue, 8) == [first[3]]
    assert queue.peek() is None
    queue.check_integrity()
    table.leases[first[2]] = 0
    queue.num_idle += 1
    table.device_state[first[2]] = DeviceState.LOADING
    queue.enqueue(np.array(first[2:3], np.int32))
    assert queue.peek() is None
    assert queue.pop(1) == []


def test_the_integrity_check_finds_a_leaf_that_is_not_queued():
    table, queue, (first,) = paths(2)
    table.num_children[first[0]] = 0
    with pytest.raises(IntegrityError, match="queued leaves"):
        queue.check_integrity()
    queue.num_idle = 7
    with pytest.raises(IntegrityError, match="2 blocks are idle, 7 are counted"):
        queue.check_integrity()
