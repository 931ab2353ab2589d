import numpy as np

from kvflow_jax.speculation.matches import find_in_context


def find(tokens, max_len=8, num_next=3):
    return find_in_context(np.array(tokens, np.int32), max_len, num_next)


def test_occurrences_come_newest_first_with_what_followed():
    found = find([1, 2, 3, 8, 1, 2, 4, 9, 9, 1, 2])
    assert found.lengths == [2, 2]
    assert found.continuations.tolist() == [[4, 9, 9], [3, 8, 1]]


def test_long_matches_hide_short_ones():
    found = find([7, 2, 8, 1, 2, 3, 4, 5, 1, 2, 3, 4])
    assert found.lengths == [4]
    assert found.continuations.tolist() == [[5, 1, 2]]


def test_a_repetition_at_the_end_goes_on():
    assert find([5, 6, 7, 6, 7], num_next=5).continuations.tolist() == [[6, 7, 6, 7, 6]]
    assert find([4, 4, 4], num_next=3).continuations[0].tolist() == [4, 4, 4]


def test_short_or_new_sequences_have_no_matches():
    for tokens in ([], [1], [1, 1], [1, 2, 3], [2, 1, 3, 1]):
        assert find(tokens).lengths == []


def test_lengths_are_cut_at_the_longest_that_is_compared():
    tokens = [*range(20), *range(20)]
    assert find(tokens, max_len=6).lengths == [6]
    assert find(tokens, max_len=64).lengths == [20]
