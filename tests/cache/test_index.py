"""The radix index: longest-prefix matches, and old indexes that stay unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.index import MAX_GROWN_BLOCKS, RadixIndex, RootKey
from kvflow_jax.errors import IntegrityError

PAGE = 2
ROOT = RootKey("model")


def ids(*tokens):
    return np.array(tokens, np.int32)


def test_a_match_has_whole_pages_only():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12)).index
    assert index.match(ROOT, ids(1, 2, 3, 4, 5, 6, 7)).tolist() == [10, 11, 12]
    assert index.match(ROOT, ids(1, 2, 3, 4, 5)).tolist() == [10, 11]
    assert index.match(ROOT, ids(1, 2, 3, 9)).tolist() == [10]
    assert index.match(ROOT, ids(1)).tolist() == []
    assert index.match(RootKey("model", "other tenant"), ids(1, 2, 3, 4)).tolist() == []
    index.check_integrity()


def test_an_insert_splits_a_node_and_leaves_the_old_index_unchanged():
    first = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12)).index
    insertion = first.insert(ROOT, ids(1, 2, 3, 4, 8, 8), ids(20, 21, 22))
    assert insertion.existing.tolist() == [10, 11]
    assert insertion.split is not None
    assert insertion.split.blocks.tolist() == [12]
    assert insertion.index.match(ROOT, ids(1, 2, 3, 4, 8, 8)).tolist() == [10, 11, 22]
    assert insertion.index.match(ROOT, ids(1, 2, 3, 4, 5, 6)).tolist() == [10, 11, 12]
    assert first.match(ROOT, ids(1, 2, 3, 4, 8, 8)).tolist() == [10, 11]
    insertion.index.check_integrity()


def test_a_leaf_grows_to_a_bound_and_then_gets_a_child():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2), ids(0)).index
    grown = index.insert(ROOT, ids(1, 2, 3, 4), ids(0, 1))
    assert grown.is_grown
    length = MAX_GROWN_BLOCKS + 1
    tokens = np.arange(length * PAGE, dtype=np.int32)
    long = RadixIndex(PAGE).insert(ROOT, tokens[:-PAGE], np.arange(length - 1, dtype=np.int32))
    longer = long.index.insert(ROOT, tokens, np.arange(length, dtype=np.int32))
    assert not longer.is_grown
    assert longer.index.match(ROOT, tokens).tolist() == list(range(length))


def test_leaves_are_pruned_and_nodes_with_children_are_not():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4), ids(10, 11)).index
    index = index.insert(ROOT, ids(1, 2, 9, 9), ids(10, 21)).index
    top, first_leaf = ids(1, 2).tobytes(), ids(3, 4).tobytes()
    with pytest.raises(IntegrityError, match="2 children to 0 blocks"):
        index.prune(ROOT, [], {top: 0})
    with pytest.raises(IntegrityError, match="no node of the index"):
        index.prune(ROOT, [], {first_leaf: 0})
    pruned = index.prune(ROOT, [top], {first_leaf: 0})
    assert pruned.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10]
    empty = pruned.prune(ROOT, [top], {ids(9, 9).tobytes(): 0}).prune(ROOT, [], {top: 0})
    assert list(empty.nodes()) == []
    assert index.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10, 11]


def test_a_very_deep_index_needs_no_recursion():
    index, tokens = RadixIndex(1), np.zeros(1300, np.int32)
    for length in range(1, 1300):
        index = index.insert(ROOT, tokens[:length], np.arange(length, dtype=np.int32)).index
        if length % 2:  # a sibling, so that every second node is split off
            fork = np.append(tokens[:length], 1).astype(np.int32)
            blocks = np.append(np.arange(length), 10_000 + length).astype(np.int32)
            index = index.insert(ROOT, fork, blocks).index
    index.check_integrity()
    assert len(index.match(ROOT, tokens)) == 1299


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=40))
def test_a_match_is_the_longest_inserted_prefix(sequences):
    index, block_of, next_block = RadixIndex(1), {}, 0
    for sequence in sequences:
        tokens = np.array(sequence, np.int32)
        blocks = np.arange(next_block, next_block + len(tokens), dtype=np.int32)
        next_block += len(tokens)
        insertion = index.insert(ROOT, tokens, blocks)
        index = insertion.index
        for length in range(1, len(sequence) + 1):
            block_of.setdefault(tuple(sequence[:length]), int(blocks[length - 1]))
        expected = [block_of[tuple(sequence[:n])] for n in range(1, len(sequence) + 1)]
        assert index.match(ROOT, tokens).tolist() == expected
        assert insertion.existing.tolist() == expected[: len(insertion.existing)]
    index.check_integrity()


def test_an_insert_needs_a_page_of_tokens_for_each_block():
    with pytest.raises(ValueError, match="2 blocks need 4 tokens, got 3"):
        RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3), ids(10, 11))


def test_an_indexed_page_keeps_its_block():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2), ids(10)).index
    insertion = index.insert(ROOT, ids(1, 2), ids(20))
    assert insertion.existing.tolist() == [10]
    assert insertion.index is index


def test_new_blocks_are_a_node_of_their_own_if_the_leaf_may_not_grow():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2), ids(10)).index
    insertion = index.insert(ROOT, ids(1, 2, 3, 4), ids(10, 11), may_grow=False)
    assert not insertion.is_grown
    parents = {int(node.blocks[0]): parent for _, parent, node in insertion.index.nodes()}
    assert parents == {10: -1, 11: 10}


def test_a_node_is_split_at_its_path():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4), ids(10, 11)).index
    path = [ids(1, 2).tobytes()]
    with pytest.raises(IntegrityError, match="cannot split a node of 2 blocks after 2"):
        index.split(ROOT, path, 2)
    split, lower = index.split(ROOT, path, 1)
    assert lower.blocks.tolist() == [11]
    assert split.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10, 11]
    split.check_integrity()
    with pytest.raises(IntegrityError, match="no node of the index has this path"):
        split.split(ROOT, [ids(3, 4).tobytes()], 1)


def test_a_leaf_is_truncated():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4), ids(10, 11)).index
    pruned = index.prune(ROOT, [], {ids(1, 2).tobytes(): 1})
    assert pruned.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10]
    pruned.check_integrity()


def test_the_integrity_check_finds_a_block_that_is_indexed_twice():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2), ids(10)).index
    index = index.insert(ROOT, ids(3, 4), ids(10)).index
    with pytest.raises(IntegrityError, match="indexed twice"):
        index.check_integrity()
