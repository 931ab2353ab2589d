"""The next read of nodes: the soonest over the readers at a node and below it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.next_read import SUFFIX, scheduled
from kvflow_jax.cache.reuse_tracker import ReuseTracker
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import TieredCache, prompt

# Nodes of one block each: 0 is the root of 1 and 2, and 2 that of 3.
CHILDREN = {0: [1, 2], 1: [], 2: [3], 3: []}


def tracker():
    table = BlockTable(4, 4)
    table.head[:] = range(4)
    table.parent[:] = [NO_BLOCK, 0, 0, 2]
    return ReuseTracker(table)


def distances(readers, num=4):
    """The distance of the next read of each node; None if it is a suffix."""
    reads = [readers.next_read_of(head) for head in range(num)]
    return [None if read == SUFFIX else read.distance for read in reads]


def test_a_shared_node_counts_as_its_soonest_reader():
    readers = tracker()
    readers.attach("a", 1, scheduled(5.0))
    readers.attach("b", 3, scheduled(2.0))
    assert distances(readers) == [2.0, 5.0, 2.0, 2.0]
    assert len(readers) == 2
    readers.set_next_read("b", scheduled(9.0))
    assert distances(readers) == [5.0, 5.0, 9.0, 9.0]
    readers.check_integrity(CHILDREN)


def test_only_nodes_whose_minimum_changes_are_reported():
    readers = tracker()
    readers.attach("a", 1, scheduled(2.0))
    readers.attach("b", 3, scheduled(5.0))
    assert readers.drain_changed() == {0, 1, 2, 3}
    readers.set_next_read("b", scheduled(7.0))
    assert readers.drain_changed() == {2, 3}
    readers.set_next_read("b", scheduled(7.0))
    assert readers.drain_changed() == set()


def test_a_removed_reader_leaves_a_suffix():
    readers = tracker()
    readers.attach("a", 3, scheduled(2.0))
    assert readers.has_reader_at(3)
    readers.detach("a")
    assert not readers.has_reader_at(3)
    assert distances(readers) == [None] * 4
    readers.check_integrity(CHILDREN)


def test_an_unknown_reader_has_no_effect():
    readers = tracker()
    readers.set_next_read("a", scheduled(1.0))
    readers.detach("a")
    assert distances(readers) == [None] * 4
    assert readers.drain_changed() == set()


def test_a_reader_moves_with_its_prefix():
    readers = tracker()
    readers.attach("a", 1, scheduled(2.0))
    readers.attach("a", 3, scheduled(2.0))
    assert readers.has_reader_at(3)
    assert distances(readers) == [2.0, None, 2.0, 2.0]
    readers.check_integrity(CHILDREN)


def test_readers_of_an_evicted_node_are_attached_to_its_parent():
    readers = tracker()
    for reader, steps in (("a", 4.0), ("b", 4.0), ("c", 6.0)):
        readers.attach(reader, 3, scheduled(steps))
    readers.drop({3: 2})
    assert readers.has_reader_at(2)
    assert distances(readers) == [4.0, None, 4.0, None]
    readers.check_integrity({0: [1, 2], 1: [], 2: []})
    readers.detach("a")
    readers.detach("b")
    assert distances(readers)[0] == 6.0


def test_readers_of_an_evicted_top_node_are_removed():
    readers = tracker()
    readers.attach("a", 0, scheduled(4.0))
    readers.drop({0: NO_BLOCK})
    assert len(readers) == 0
    assert distances(readers) == [None] * 4


def test_a_split_moves_the_readers_to_the_lower_half():
    table = BlockTable(2, 2)
    table.head[:], table.parent[:] = [0, 0], [NO_BLOCK, 0]
    readers = ReuseTracker(table)
    readers.attach("a", 0, scheduled(3.0))
    readers.attach("b", 0, scheduled(5.0))
    table.head[1] = 1
    readers.split(0, 1)
    assert readers.has_reader_at(1)
    assert not readers.has_reader_at(0)
    assert distances(readers, 2) == [3.0, 3.0]
    readers.check_integrity({0: [1], 1: []})


def test_the_integrity_check_finds_wrong_next_reads():
    readers = tracker()
    readers.attach("a", 3, scheduled(2.0))
    table = readers._table
    table.next_read[2, 1] = 1.0
    with pytest.raises(IntegrityError, match="columns of the next read"):
        readers.check_integrity(CHILDREN)
    table.next_read[2, 1] = 2.0
    with pytest.raises(IntegrityError, match="do not list them"):
        readers.check_integrity({0: [1, 2], 1: [], 2: []})
    readers.drop({3: 2})
    table.next_read[3] = scheduled(1.0)
    with pytest.raises(IntegrityError, match="columns of the next read"):
        readers.check_integrity({0: [1, 2], 1: [], 2: []})
    table.next_read[3] = SUFFIX
    readers._nodes[0].next_read = scheduled(1.0)
    with pytest.raises(IntegrityError, match="not the least of its readers"):
        readers.check_integrity({0: [1, 2], 1: [], 2: []})


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 0.0, 1.0, 2.0])),
        max_size=30,
    )
)
def test_next_reads_are_the_soonest_after_any_changes(changes):
    readers = tracker()
    for reader, head, steps in changes:
        if steps is None:
            readers.detach(reader)
        else:
            readers.attach(reader, head, scheduled(steps))
        readers.check_integrity(CHILDREN)


def test_what_agents_share_counts_as_the_soonest_of_them():
    tiers = TieredCache(num_pages=10, num_host=0)
    shared = prompt(9, 4)
    tiers.serve(shared + prompt(1, 4), reader="a", steps=7)
    tiers.serve(shared + prompt(2, 4), reader="b", steps=2)
    tiers.serve(prompt(3), reader="c", steps=5)
    path = tiers.path(shared + prompt(1, 4)).tolist()
    assert [tiers.cache.next_read_of(block).distance for block in path] == [2, 2, 7, 7]
    tiers.cache.set_next_read("b", scheduled(9.0))
    assert [tiers.cache.next_read_of(block).distance for block in path] == [7, 7, 7, 7]
    tiers.cache.remove_reader("a")
    tiers.cache.remove_reader("b")
    assert {tiers.cache.next_read_of(block) for block in path} == {SUFFIX}
    tiers.cache.check_integrity()


def test_the_dynamic_suffix_of_a_prompt_has_no_reader():
    tiers = TieredCache(num_pages=8)
    first, second = prompt(1, 6) + prompt(5, 4), prompt(1, 6) + prompt(6, 4)
    tiers.serve(first, reader="a", steps=1, num_fixed=6)
    path = tiers.path(first).tolist()
    soon = scheduled(1.0)
    assert [tiers.cache.next_read_of(block) for block in path] == [soon] * 3 + [SUFFIX] * 2
    tiers.serve(second, reader="a", steps=1, num_fixed=6)
    assert tiers.num_resident(first)[1] == 5
    tiers.cache.evict(4, 0.0)
    assert tiers.num_resident(first) == (3, 3)
    assert tiers.residency.num_offloaded == 0  # suffixes are dropped
