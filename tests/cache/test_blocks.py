"""The block table: ids and pages are allocated once and freed once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.blocks import NO_PAGE, BlockTable, DeviceState, HostState
from kvflow_jax.errors import CapacityError, IntegrityError


def test_allocated_blocks_have_a_valid_page_and_never_the_null_page():
    table = BlockTable(num_blocks=6, num_pages=4)
    blocks = table.allocate(4, now=3.0)
    assert sorted(table.page[blocks]) == [1, 2, 3, 4]
    assert (table.device_state[blocks] == DeviceState.VALID).all()
    assert (table.last_use[blocks] == 3.0).all()
    assert table.num_free_pages == 0
    table.check_integrity()


def test_an_allocation_of_no_blocks_changes_nothing():
    table = BlockTable(2, 2)
    assert table.allocate(0, now=0.0).tolist() == []
    assert table.num_free_pages == 2


def test_an_allocation_beyond_the_free_pages_or_ids_fails():
    table = BlockTable(num_blocks=3, num_pages=2)
    with pytest.raises(CapacityError, match="3 blocks: 2 pages and 3 ids are free"):
        table.allocate(3, now=0.0)
    blocks = table.allocate(2, now=0.0)
    table.host_state[blocks] = HostState.VALID
    table.extent[blocks] = 0
    table.drop_pages(blocks)
    with pytest.raises(CapacityError, match="2 blocks: 2 pages and 1 ids are free"):
        table.allocate(2, now=0.0)
    with pytest.raises(CapacityError, match="3 pages: 2 pages are free"):
        table.assign_pages(np.arange(3), DeviceState.LOADING, 0.0)


def test_a_dropped_page_is_reused_and_the_block_keeps_its_id():
    table = BlockTable(3, 1)
    (block,) = table.allocate(1, now=0.0)
    table.host_state[block], table.extent[block] = HostState.VALID, 0
    table.drop_pages(np.array([block]))
    assert table.page[block] == NO_PAGE
    assert table.allocate(1, now=0.0)[0] != block
    table.check_integrity()


def test_a_page_moves_from_a_duplicate_to_the_original():
    table = BlockTable(3, 1)
    source = int(table.allocate(1, now=0.0)[0])
    target = (source + 1) % 3
    table.move_page(source, target)
    assert (table.page[target], table.page[source]) == (1, NO_PAGE)
    assert table.device_state[[source, target]].tolist() == [DeviceState.NONE, DeviceState.VALID]


def test_a_reused_id_has_another_generation():
    table = BlockTable(1, 1)
    blocks = table.allocate(1, now=0.0)
    before = int(table.generation[0])
    table.free(blocks)
    assert table.allocate(1, now=0.0).tolist() == [0]
    assert table.generation[0] == before + 1


@pytest.mark.parametrize(
    ("column", "value"), [("leases", 1), ("head", 0), ("host_state", HostState.WRITING)]
)
def test_a_block_in_use_cannot_be_freed(column, value):
    table = BlockTable(2, 2)
    blocks = table.allocate(2, now=0.0)
    getattr(table, column)[blocks[1]] = value
    with pytest.raises(IntegrityError, match=f"cannot free blocks .{blocks[1]}.: they are in use"):
        table.free(blocks)


def test_scalar_views_share_the_memory_of_the_arrays():
    table = BlockTable(2, 2)
    table.scalars.leases[1] += 2
    table.parent[0] = 7
    assert table.leases[1] == 2
    assert table.scalars.parent[0] == 7


@pytest.mark.parametrize(
    ("column", "block", "value", "message"),
    [
        ("page", 0, 2, "lost, or used twice"),
        ("device_state", 0, DeviceState.NONE, "contradicts its device state"),
        ("host_state", 0, HostState.VALID, "contradicts its host state"),
        ("leases", 3, 1, "free block is leased"),
        ("num_children", 0, -1, "negative"),
    ],
)
def test_the_integrity_check_finds_a_corrupt_column(column, block, value, message):
    table = BlockTable(4, 4)
    table.allocate(2, now=0.0)
    table.check_integrity()
    getattr(table, column)[block] = value
    with pytest.raises(IntegrityError, match=message):
        table.check_integrity()


def test_the_integrity_check_finds_a_block_that_is_freed_twice():
    table = BlockTable(4, 4)
    blocks = table.allocate(2, now=0.0)
    table.free(blocks)
    table.free(blocks)
    with pytest.raises(IntegrityError, match="id is lost, or free and in use at once"):
        table.check_integrity()


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4)))
def test_any_order_of_allocating_and_freeing_loses_no_page(counts):
    table, live = BlockTable(8, 8), []
    for count in counts:
        if count > table.num_free_pages:
            with pytest.raises(CapacityError):
                table.allocate(count, now=0.0)
        elif count > 0:
            live += table.allocate(count, now=0.0).tolist()
        elif count:
            freed, live = live[count:], live[:count]
            table.free(np.array(freed, np.int32))
        table.check_integrity()
        assert table.num_free_pages == table.num_pages - len(live)
