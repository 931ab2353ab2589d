"""Belady's replacement against every replacement that there is."""

import functools
import itertools

import numpy as np
import pytest

from experiments.workloads.base import Call, Run
from experiments.zero_hints.belady import Access, accesses, belady_hits

PAGE = 4


def sequence(*paths):
    """Accesses of paths through a tree, such as "abc": each letter is a block behind those before.

    The whole path is a prompt.
    """
    ids = {}
    return [
        Access(
            np.array([ids.setdefault(path[: n + 1], len(ids)) for n in range(len(path))], np.int64),
            len(path),
        )
        for path in paths
    ]


def most_hits(paths, capacity):
    """Return the most hits of any choice of what to keep after each access."""

    @functools.cache
    def best(number, kept):
        if number == len(paths):
            return 0
        path = [paths[number][: n + 1] for n in range(len(paths[number]))]
        num_hits = next((n for n, block in enumerate(path) if block not in kept), len(path))
        blocks = sorted(kept | set(path))
        choices = itertools.combinations(blocks, min(capacity, len(blocks)))
        return num_hits + max(best(number + 1, frozenset(chosen)) for chosen in choices)

    return best(0, frozenset())


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_of_blocks_has_more_hits(seed):
    rng = np.random.default_rng(seed)
    paths = ["".join(rng.choice(list("ab"), rng.integers(1, 4))) for _ in range(7)]
    for capacity in range(5):
        assert sum(belady_hits(sequence(*paths), capacity)) == most_hits(tuple(paths), capacity)


def test_the_furthest_reader_loses_its_deepest_blocks():
    assert belady_hits(sequence("abc", "xyz", "xyz", "abc"), 4) == [0, 0, 3, 1]
    assert belady_hits(sequence("abc", "xyz", "xyz", "abc"), 6) == [0, 0, 3, 3]
    assert belady_hits(sequence("abc", "abd", "abc"), 3) == [0, 2, 3]


def test_nothing_is_hit_without_calls_or_room():
    assert belady_hits([], 4) == []
    assert belady_hits(sequence("ab", "ab"), 0) == [0, 0]


def test_blocks_are_equal_if_all_before_them_are():
    tokens = np.arange(3 * PAGE, dtype=np.int32)
    other = np.concatenate([-tokens[:PAGE] - 1, tokens[PAGE:]])
    run = Run("t", "r", None, tuple(Call("a", (part,), 0, 1) for part in (tokens, tokens, other)))
    one, two, three = accesses([(run, number) for number in range(3)], PAGE)
    assert one.blocks.tolist() == two.blocks.tolist() == [0, 1, 2]
    assert not {0, 1, 2} & set(three.blocks.tolist())
    assert one.num_read == 2  # the last prompt token is computed


def test_an_answer_is_read_by_the_call_whose_prompt_holds_it():
    tokens = np.zeros(PAGE, np.int32)
    calls = (
        Call("a", (tokens,), 0, 2 * PAGE + 1),
        Call("a", (tokens, 0, tokens), 0, 1),
        Call("b", (tokens,), 0, 2 * PAGE + 1),  # the same prompt, another answer
    )
    run = Run("t", "r", None, calls)
    found = accesses([(run, number) for number in range(3)], PAGE)
    assert found[0].blocks.tolist() == [0, 1, 2]
    assert found[1].blocks.tolist()[:3] == [0, 1, 2]
    assert found[2].blocks.tolist()[:1] == [0]
    assert not {1, 2} & set(found[2].blocks.tolist())
    assert belady_hits(found, 8) == [0, 3, 0]
