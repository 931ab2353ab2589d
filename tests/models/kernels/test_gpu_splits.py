"""Attention to splits of a context, merged, equals attention to all of it."""

import numpy as np
import pytest

from kvflow_jax.models.kernels.gpu_splits import (
    MAX_SPLITS,
    PROGRAMS,
    merge_splits,
    num_splits,
)


def softmax_and_lse(scores, v):
    """Return the softmax output [G, H] and the log-sum-exp [G] of scores [G, S] over v [S, H]."""
    exps = np.exp(scores)
    total = exps.sum(-1)
    return exps @ v / total[:, None], np.log(total)


def test_merged_splits_equal_one_softmax():
    rng = np.random.default_rng(0)
    scores, v = rng.normal(size=(3, 40)) * 5, rng.normal(size=(40, 8))
    parts = [slice(0, 7), slice(7, 30), slice(30, 40)]
    outs, lse = zip(*(softmax_and_lse(scores[:, part], v[part]) for part in parts), strict=True)
    merged = merge_splits(np.stack(outs), np.stack(lse))
    np.testing.assert_allclose(merged, softmax_and_lse(scores, v)[0], atol=1e-5)


def test_a_split_without_positions_has_no_weight():
    outs, lse = np.array([[[3.0]], [[100.0]]]), np.array([[0.5], [-1e30]])
    np.testing.assert_array_equal(merge_splits(outs, lse), [[3.0]])


@pytest.mark.parametrize(
    ("num_programs", "expected"),
    [(1, MAX_SPLITS), (PROGRAMS // 4, 4), (PROGRAMS, 1), (10 * PROGRAMS, 1)],
)
def test_few_programs_are_split_and_many_are_not(num_programs, expected):
    assert num_splits(num_programs) == expected
