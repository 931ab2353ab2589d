"""Working sets: distinct blocks of active readers, and the blocks that they recompute."""

from collections import Counter

import numpy as np
import pytest

from kvflow_jax.control.admission.working_sets import WorkingSets
from kvflow_jax.errors import IntegrityError


def hashes(*keys):
    return np.array(keys, np.int64)


@pytest.fixture
def sets():
    """Readers a and b that share two blocks, and c with one of its own; none is active."""
    sets = WorkingSets()
    sets.set("a", hashes(1, 2, 3))
    sets.set("b", hashes(1, 2, 4, 5))
    sets.set("c", hashes(6))
    return sets


def test_blocks_that_several_active_readers_share_count_once(sets):
    assert sets.num_active_blocks == 0
    sets.acquire(["a", "b"])
    assert sets.num_active_blocks == 5
    assert sets.num_blocks(["a", "b"]) == 7
    sets.release(["a"])
    assert sets.num_active_blocks == 4
    sets.check_integrity(Counter("b"))


def test_a_reader_is_active_until_its_last_run_releases_it(sets):
    sets.acquire(["c"])
    sets.acquire(["c"])
    sets.release(["c"])
    assert sets.num_active_blocks == 1
    sets.release(["c"])
    assert sets.num_active_blocks == 0
    sets.check_integrity(Counter())


def test_additional_blocks_are_those_that_no_active_reader_has(sets):
    sets.acquire(["a"])
    assert sets.num_additional(["a"]) == 0
    assert sets.num_additional(["b", "c"]) == 3
    assert sets.num_additional(["unknown"]) == 0


def test_a_release_frees_blocks_only_if_no_other_reader_has_them(sets):
    sets.set("prefix of a", hashes(1, 2))
    sets.acquire(["a", "prefix of a"])
    assert sets.would_free_blocks(["a"])
    assert not sets.would_free_blocks(["prefix of a"])
    sets.acquire(["a"])
    assert not sets.would_free_blocks(["a"])  # another run uses it


def test_a_working_set_may_change_while_its_reader_is_active(sets):
    sets.acquire(["a"])
    sets.set("a", hashes(1, 7, 8, 9))
    assert sets.num_active_blocks == 4
    sets.remove("a")
    assert sets.num_active_blocks == 0
    sets.check_integrity(Counter("a"))


def test_only_blocks_that_a_warm_reader_had_read_are_recomputed(sets):
    prompt = hashes(1, 2, 3, 9)
    sets.acquire(["a"])
    assert sets.num_recomputed(prompt, 0, ["a"]) == 0  # cold
    assert sets.num_recomputed(prompt, 1, ["a"]) == 2
    assert sets.num_recomputed(prompt, 3, ["a"]) == 0
    assert sets.num_recomputed(prompt, 0, ["unknown"]) == 0
    sets.mark_all_cold()
    assert sets.num_recomputed(prompt, 0, ["a"]) == 0
    assert sets.num_recomputed(prompt, 0, ["a"]) == 3


def test_a_reader_may_become_active_warm(sets):
    sets.acquire(["a"], have_read=True)
    assert sets.num_recomputed(hashes(1, 2, 3), 0, ["a"]) == 3


def test_wrong_counts_are_found(sets):
    sets.acquire(["a"])
    with pytest.raises(IntegrityError, match="not those of the active readers"):
        sets.check_integrity(Counter("ab"))
