import numpy as np

from kvflow_jax.speculation.matches import MAX_MATCHES
from kvflow_jax.speculation.suffix_index import BYTES_PER_TOKEN, SuffixIndex, owner_of

A, B = owner_of("model", "", "a"), owner_of("model", "", "b")


def i32(*tokens):
    return np.array(tokens, np.int32)


def find(index, *tokens, owner=A, max_len=8, num_next=4):
    return index.find(owner, i32(*tokens), max_len, num_next)


def test_an_answer_is_found_up_to_its_end():
    index = SuffixIndex(1024)
    index.insert(A, i32(1, 2, 3, 4, 5))
    assert find(index, 9, 2, 3).continuations.tolist() == [[4, 5, -1, -1]]
    assert find(index, 9, 2, 3).lengths == [2]
    assert find(index, 1, 2, 3).lengths == [3]
    assert find(index, 4, 5).lengths == []  # nothing follows
    assert find(index, 3).lengths == []  # a single token is no match
    assert find(index, 3, 2).lengths == []


def test_owners_find_their_own_answers_only():
    index = SuffixIndex(1024)
    index.insert(A, i32(1, 2, 3, 4))
    assert find(index, 1, 2, owner=B).lengths == []
    index.insert(B, i32(1, 2, 7, 8))
    assert find(index, 1, 2, owner=B).continuations[0].tolist() == [7, 8, -1, -1]
    assert find(index, 1, 2).continuations.tolist() == [[3, 4, -1, -1]]
    assert owner_of("a", "b") != owner_of("ab", "")
    assert owner_of("\ud800") == owner_of("\ud800")


def test_the_newest_answers_come_first_and_are_bounded():
    index = SuffixIndex(1024)
    for i in range(40):
        index.insert(A, i32(1, 2, 100 + i))
    found = find(index, 1, 2)
    newest = [100 + i for i in range(39, 39 - MAX_MATCHES, -1)]
    assert found.continuations[:, 0].tolist() == newest


def test_long_ngrams_find_what_many_short_ones_hide():
    index = SuffixIndex(4096)
    index.insert(A, i32(5, 6, 1, 2, 99))
    for i in range(40):
        index.insert(A, i32(1, 2, 100 + i))
    found = find(index, 5, 6, 1, 2)
    assert found.lengths == [4]
    assert found.continuations[0, 0] == 99


def test_the_oldest_answers_are_overwritten_and_never_found_again():
    rng = np.random.default_rng(0)
    index = SuffixIndex(256)
    answers = [rng.integers(0, 6, rng.integers(3, 40)) for _ in range(200)]
    kept: list[list[int]] = []
    for i, answer in enumerate(answers):
        owner = (A, B)[i % 2]
        index.insert(owner, answer.astype(np.int32))
        kept.append(answer.tolist())
        query = rng.integers(0, 6, 6).astype(np.int32)
        found = index.find(owner, query, 6, 5)
        own = [one for j, one in enumerate(kept) if (A, B)[j % 2] == owner]
        for length, row in zip(found.lengths, found.continuations.tolist(), strict=True):
            following = [token for token in row if token >= 0]
            expected = query[6 - length :].tolist() + following
            assert following
            assert any(
                expected == one[j : j + len(expected)] for one in own for j in range(len(one))
            )
    assert find(index, *answers[0][:4].tolist(), max_len=40).lengths != [len(answers[0])]


def test_its_bytes_are_those_that_are_said():
    assert SuffixIndex(1000).num_bytes == 1024 * BYTES_PER_TOKEN


def test_of_an_answer_longer_than_the_index_the_end_is_kept():
    index = SuffixIndex(16)
    index.insert(A, np.arange(100, dtype=np.int32))
    assert find(index, 95, 96).continuations[0].tolist() == [97, 98, 99, -1]
    assert find(index, 80, 81).lengths == []
