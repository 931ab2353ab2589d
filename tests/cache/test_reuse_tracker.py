"""Steps-to-execution of nodes: the minimum over the readers at a node and below it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.blocks import NO_BLOCK, SUFFIX, BlockTable
from kvflow_jax.cache.reuse_tracker import (
    LIKELIHOOD_SPREAD,
    NEVER_STEPS,
    OTHER_BRANCH,
    THROTTLED_STEPS,
    UNKNOWN_STEPS,
    MinMultiset,
    ReuseTracker,
)
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import TieredCache, prompt

# Nodes of one block each: 0 is the root of 1 and 2, and 2 that of 3.
CHILDREN = {0: [1, 2], 1: [], 2: [3], 3: []}


def tracker():
    table = BlockTable(4, 4)
    table.head[:] = range(4)
    table.parent[:] = [NO_BLOCK, 0, 0, 2]
    return ReuseTracker(table), table.steps


def test_a_shared_node_counts_as_its_soonest_reader():
    readers, steps = tracker()
    readers.set("a", 1, 5.0)
    readers.set("b", 3, 2.0)
    assert steps.tolist() == [2.0, 5.0, 2.0, 2.0]
    assert len(readers) == 2
    readers.set_steps("b", 9.0)
    assert steps.tolist() == [5.0, 5.0, 9.0, 9.0]
    readers.check_integrity(CHILDREN)


def test_only_nodes_whose_minimum_changes_are_reported():
    readers, _ = tracker()
    readers.set("a", 1, 2.0)
    readers.set("b", 3, 5.0)
    assert readers.changed == {0, 1, 2, 3}
    readers.changed.clear()
    readers.set_steps("b", 7.0)
    assert readers.changed == {2, 3}
    readers.changed.clear()
    readers.set_steps("b", 7.0)
    assert readers.changed == set()


def test_a_removed_reader_leaves_a_suffix():
    readers, steps = tracker()
    readers.set("a", 3, 2.0)
    assert readers.has_reader_at(3)
    readers.remove("a")
    assert not readers.has_reader_at(3)
    assert readers.node_of("a") is None
    assert (steps == SUFFIX).all()
    readers.check_integrity(CHILDREN)


def test_an_unknown_reader_has_no_effect():
    readers, steps = tracker()
    readers.set_steps("a", 1.0)
    readers.remove("a")
    assert (steps == SUFFIX).all()
    assert readers.changed == set()


def test_a_reader_moves_with_its_prefix():
    readers, steps = tracker()
    readers.set("a", 1, 2.0)
    readers.set("a", 3, 2.0)
    assert readers.node_of("a") == 3
    assert steps.tolist() == [2.0, SUFFIX, 2.0, 2.0]
    readers.check_integrity(CHILDREN)


def test_readers_of_an_evicted_node_are_attached_to_its_parent():
    readers, steps = tracker()
    for reader, value in (("a", 4.0), ("b", 4.0), ("c", 6.0)):
        readers.set(reader, 3, value)
    readers.drop(3, before=2)
    assert {readers.node_of(reader) for reader in "abc"} == {2}
    assert steps.tolist() == [4.0, SUFFIX, 4.0, SUFFIX]
    readers.check_integrity({0: [1, 2], 1: [], 2: []})
    readers.remove("a")
    readers.remove("b")
    assert steps[0] == 6.0


def test_readers_of_an_evicted_top_node_are_removed():
    readers, steps = tracker()
    readers.set("a", 0, 4.0)
    readers.drop(0, before=NO_BLOCK)
    assert len(readers) == 0
    assert (steps == SUFFIX).all()


def test_a_split_moves_the_readers_to_the_lower_half():
    table = BlockTable(2, 2)
    table.head[:], table.parent[:] = [0, 0], [NO_BLOCK, 0]
    readers = ReuseTracker(table)
    readers.set("a", 0, 3.0)
    readers.set("b", 0, 5.0)
    table.head[1] = 1
    readers.split(0, 1)
    assert {readers.node_of("a"), readers.node_of("b")} == {1}
    assert table.steps.tolist() == [3.0, 3.0]
    readers.check_integrity({0: [1], 1: []})


def test_the_integrity_check_finds_wrong_steps():
    readers, steps = tracker()
    readers.set("a", 3, 2.0)
    steps[2] = 1.0
    with pytest.raises(IntegrityError, match="node 2 has wrong steps"):
        readers.check_integrity(CHILDREN)
    steps[2] = 2.0
    with pytest.raises(IntegrityError, match="do not list them"):
        readers.check_integrity({0: [1, 2], 1: [], 2: []})
    readers.drop(3, before=2)
    steps[3] = 1.0
    with pytest.raises(IntegrityError, match="not the head of a node"):
        readers.check_integrity({0: [1, 2], 1: [], 2: []})


def test_fractions_of_a_step_never_reorder_whole_steps():
    assert 1.0 + LIKELIHOOD_SPREAD + OTHER_BRANCH < 2.0
    assert UNKNOWN_STEPS < UNKNOWN_STEPS + THROTTLED_STEPS < NEVER_STEPS < SUFFIX


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 0.0, 1.0, 2.5])),
        max_size=30,
    )
)
def test_steps_are_the_minimum_after_any_changes(changes):
    readers, _ = tracker()
    for reader, head, steps in changes:
        if steps is None:
            readers.remove(reader)
        else:
            readers.set(reader, head, steps)
        readers.check_integrity(CHILDREN)


def test_an_empty_multiset_has_an_infinite_minimum():
    assert MinMultiset().minimum == SUFFIX
    with pytest.raises(KeyError):
        MinMultiset().remove(1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_a_multiset_tracks_its_minimum(operations):
    multiset, values = MinMultiset(), []
    for is_add, value in operations:
        if is_add:
            multiset.add(float(value))
            values.append(value)
        elif value in values:
            multiset.remove(float(value))
            values.remove(value)
        assert multiset.minimum == min(values, default=SUFFIX)
        assert len(multiset) == len(set(values))


def test_a_multiset_forgets_values_that_come_and_go():
    multiset = MinMultiset()
    multiset.add(-1.0)
    for value in range(1000):
        multiset.add(float(value))
        multiset.remove(float(value))
    assert len(multiset._heap) < 20
    assert multiset.minimum == -1.0


def test_what_agents_share_counts_as_the_soonest_of_them():
    tiers = TieredCache(num_pages=10, num_host=0)
    shared = prompt(9, 4)
    tiers.serve(shared + prompt(1, 4), reader="a", steps=7)
    tiers.serve(shared + prompt(2, 4), reader="b", steps=2)
    tiers.serve(prompt(3), reader="c", steps=5)
    table = tiers.cache.table
    path = tiers.path(shared + prompt(1, 4))
    assert [tiers.cache.steps_of(block) for block in path.tolist()] == [2, 2, 7, 7]
    tiers.cache.set_steps("b", 9)
    assert [tiers.cache.steps_of(block) for block in path.tolist()] == [7, 7, 7, 7]
    tiers.cache.remove_reader("a")
    tiers.cache.remove_reader("b")
    assert np.isinf(table.steps[table.head[path]]).all()
    tiers.cache.check_integrity()


def test_the_dynamic_suffix_of_a_prompt_has_no_reader():
    tiers = TieredCache(num_pages=8)
    first, second = prompt(1, 6) + prompt(5, 4), prompt(1, 6) + prompt(6, 4)
    tiers.serve(first, reader="a", steps=1, num_fixed=6)
    path = tiers.path(first)
    assert [tiers.cache.steps_of(block) for block in path.tolist()] == [1, 1, 1, SUFFIX, SUFFIX]
    tiers.serve(second, reader="a", steps=1, num_fixed=6)
    assert tiers.num_resident(first)[1] == 5
    tiers.residency.evict(4)
    assert tiers.num_resident(first) == (3, 3)
    assert tiers.residency.num_offloaded == 0  # suffixes are dropped
