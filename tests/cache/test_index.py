import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.cache.index import MAX_GROWN_BLOCKS, RadixIndex, RootKey
from kvflow_jax.errors import IntegrityError

PAGE = 2
ROOT = RootKey("model")


def ids(*tokens):
    return np.array(tokens, np.int32)


def test_match_shares_whole_pages_only():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12)).index
    assert index.match(ROOT, ids(1, 2, 3, 4, 5, 6, 7)).tolist() == [10, 11, 12]
    assert index.match(ROOT, ids(1, 2, 3, 4, 5)).tolist() == [10, 11]
    assert index.match(ROOT, ids(1, 2, 3, 9)).tolist() == [10]
    assert index.match(ROOT, ids(1)).tolist() == []
    assert index.match(RootKey("model", "other tenant"), ids(1, 2, 3, 4)).tolist() == []
    index.check_integrity()


def test_insert_splits_and_the_old_index_stays():
    first = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12)).index
    done = first.insert(ROOT, ids(1, 2, 3, 4, 8, 8), ids(20, 21, 22))
    assert done.existing.tolist() == [10, 11]
    assert done.split is not None
    assert done.split.blocks.tolist() == [12]
    assert done.index.match(ROOT, ids(1, 2, 3, 4, 8, 8)).tolist() == [10, 11, 22]
    assert done.index.match(ROOT, ids(1, 2, 3, 4, 5, 6)).tolist() == [10, 11, 12]
    assert first.match(ROOT, ids(1, 2, 3, 4, 8, 8)).tolist() == [10, 11]
    done.index.check_integrity()


def test_a_leaf_grows_up_to_a_bound_and_then_gets_a_child():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2), ids(0)).index
    grown = index.insert(ROOT, ids(1, 2, 3, 4), ids(0, 1))
    assert grown.is_grown
    length = MAX_GROWN_BLOCKS + 1
    tokens = np.arange(length * PAGE, dtype=np.int32)
    long = RadixIndex(PAGE).insert(ROOT, tokens[:-PAGE], np.arange(length - 1, dtype=np.int32))
    longer = long.index.insert(ROOT, tokens, np.arange(length, dtype=np.int32))
    assert not longer.is_grown
    assert longer.index.match(ROOT, tokens).tolist() == list(range(length))


def test_prune_takes_tails_and_refuses_what_others_continue():
    index = RadixIndex(PAGE).insert(ROOT, ids(1, 2, 3, 4), ids(10, 11)).index
    index = index.insert(ROOT, ids(1, 2, 9, 9), ids(10, 21)).index
    top, left = ids(1, 2).tobytes(), ids(3, 4).tobytes()
    with pytest.raises(IntegrityError, match="2 children to 0 blocks"):
        index.prune(ROOT, [], {top: 0})
    with pytest.raises(IntegrityError, match="no node of the index"):
        index.prune(ROOT, [], {left: 0})
    pruned = index.prune(ROOT, [top], {left: 0})
    assert pruned.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10]
    empty = pruned.prune(ROOT, [top], {ids(9, 9).tobytes(): 0}).prune(ROOT, [], {top: 0})
    assert list(empty.nodes()) == []
    assert index.match(ROOT, ids(1, 2, 3, 4)).tolist() == [10, 11]


def test_a_very_deep_index_needs_no_deep_stack():
    index, tokens = RadixIndex(1), np.zeros(1300, np.int32)
    for length in range(1, 1300):
        index = index.insert(ROOT, tokens[:length], np.arange(length, dtype=np.int32)).index
        if length % 2:  # a sibling, so that every second node is split off
            fork = np.append(tokens[:length], 1).astype(np.int32)
            blocks = np.append(np.arange(length), 10_000 + length).astype(np.int32)
            index = index.insert(ROOT, fork, blocks).index
    index.check_integrity()
    assert len(index.match(ROOT, tokens)) == 1299


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=40))
def test_matches_the_longest_inserted_prefix(sequences):
    index, owner, next_block = RadixIndex(1), {}, 0
    for sequence in sequences:
        tokens = np.array(sequence, np.int32)
        fresh = np.arange(next_block, next_block + len(tokens), dtype=np.int32)
        next_block += len(tokens)
        done = index.insert(ROOT, tokens, fresh)
        index = done.index
        for length in range(1, len(sequence) + 1):
            owner.setdefault(tuple(sequence[:length]), int(fresh[length - 1]))
        expected = [owner[tuple(sequence[:n])] for n in range(1, len(sequence) + 1)]
        assert index.match(ROOT, tokens).tolist() == expected
        assert done.existing.tolist() == expected[: len(done.existing)]
    index.check_integrity()
