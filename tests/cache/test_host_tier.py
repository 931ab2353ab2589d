"""The host tier: extents form chains from the root, within the budget."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable, DeviceState, HostState
from kvflow_jax.cache.host_tier import HostTier
from kvflow_jax.cache.policy import lru
from kvflow_jax.errors import IntegrityError


@pytest.fixture
def table():
    """A path of eight blocks on the device, of which the last three are a node of their own."""
    table = BlockTable(16, 8)
    path = table.allocate(8, now=0.0)
    assert path.tolist() == list(range(8))
    table.parent[path] = [NO_BLOCK, *range(7)]
    table.head[path] = [0] * 5 + [5] * 3
    return table


def host_tier(table, max_blocks=8, sizes=(1, 2, 4)):
    return HostTier(table, lru, max_blocks, sizes)


def offload(host, *blocks):
    extent = host.add(np.array(blocks, np.int32))
    host.complete(extent, data="copies")
    return extent


def test_a_run_is_split_into_allowed_lengths_within_its_nodes(table):
    runs = host_tier(table).split_into_extents(np.arange(8, dtype=np.int32))
    assert [run.tolist() for run in runs] == [[0, 1, 2, 3], [4], [5, 6], [7]]


def test_an_extent_is_valid_once_its_copies_are_written(table):
    host = host_tier(table)
    extent = host.add(np.array([0, 1], np.int32))
    assert not extent.is_valid
    assert (table.host_state[:2] == HostState.WRITING).all()
    assert host.victim() is None
    host.complete(extent, data="copies")
    assert (table.host_state[:2] == HostState.VALID).all()
    assert host.victim()[1] is extent
    host.check_integrity()


def test_the_budget_cannot_be_exceeded(table):
    host = host_tier(table, max_blocks=2)
    offload(host, 0)
    with pytest.raises(IntegrityError, match="budget"):
        host.add(np.array([1, 2], np.int32))
    assert host.num_blocks == 1


def test_an_extent_is_evicted_after_the_extents_that_continue_it(table):
    host = host_tier(table)
    first, second = offload(host, 0, 1), offload(host, 2)
    assert host.parent_of(second) is first
    assert host.parent_of(first) is None
    with pytest.raises(IntegrityError, match="continued by another"):
        host.drop(first)
    assert host.victim()[1] is second
    host.drop(second)
    assert host.victim()[1] is first
    host.drop(first)
    assert host.num_blocks == 0
    assert not table.host_state.any()
    host.check_integrity()


def test_a_pinned_extent_is_not_evicted(table):
    host = host_tier(table)
    extent = offload(host, 0)
    host.pin(extent)
    host.pin(extent)
    host.unpin(extent)
    assert host.victim() is None
    with pytest.raises(IntegrityError, match="pinned"):
        host.drop(extent)
    host.unpin(extent)
    assert host.victim()[1] is extent


def branches(table):
    """Three one-block sequences with host copies, last used at 1, 2 and 3 seconds."""
    table.parent[:3], table.head[:3] = NO_BLOCK, range(3)
    table.last_use[:3] = [1, 2, 3]
    host = host_tier(table)
    return host, [offload(host, block) for block in range(3)]


def test_a_copy_of_a_block_on_the_device_is_evicted_before_a_sole_copy(table):
    host, extents = branches(table)
    table.drop_pages(np.array([0, 2]))
    order = []
    for _ in extents:
        _, victim = host.victim()
        order.append(extents.index(victim))
        host.drop(victim)
    assert order == [1, 0, 2]


def test_among_copies_of_blocks_on_the_device_the_most_recently_used_is_evicted_first(table):
    host, extents = branches(table)
    assert host.victim()[1] is extents[2]
    table.last_use[0] = 9.0  # no update of the queue is needed
    host.enqueue(extents[0])
    assert host.victim()[1] is extents[0]


def test_a_use_after_the_push_moves_a_sole_copy_back(table):
    host, extents = branches(table)
    table.drop_pages(np.arange(3))
    assert host.victim()[1] is extents[0]
    table.last_use[0] = 9.0
    assert host.victim()[1] is extents[1]


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda host, table: setattr(host, "num_blocks", 9), "block count"),
        (lambda host, table: setattr(host, "max_blocks", 1), "over its budget"),
        (lambda host, table: table.extent.put(0, 7), "refer to another extent"),
        (lambda host, table: table.extent.put(3, 0), "does not contain it"),
        (lambda host, table: table.host_state.put(0, HostState.WRITING), "wrong host state"),
        (lambda host, table: table.parent.put(1, 5), "not consecutive"),
        (lambda host, table: setattr(host.extents[0], "num_children", 0), "child extents"),
        (lambda host, table: host.num_blocks_of.update({1: 1}), "counts of tenants"),
        (lambda host, table: host._queues.top()[2].pop(), "queued extents"),
    ],
)
def test_the_integrity_check_finds_a_corrupt_tier(table, corrupt, message):
    host = host_tier(table)
    offload(host, 0, 1)
    offload(host, 2)
    host.check_integrity()
    corrupt(host, table)
    with pytest.raises(IntegrityError, match=message):
        host.check_integrity()


def test_extents_of_blocks_that_leave_the_device_stay(table):
    host = host_tier(table)
    extent = offload(host, 0, 1)
    table.drop_pages(np.array([0, 1]))
    assert (table.device_state[:2] == DeviceState.NONE).all()
    assert host.extents[extent.number].data == "copies"
    host.check_integrity()
