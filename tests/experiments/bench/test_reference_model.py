"""Logits of complete sequences, without cache and batch."""

import numpy as np
import pytest

from experiments.bench.reference_model import ReferenceModel
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from tests.support.tiny_engine import CONFIG


@pytest.fixture(scope="module")
def reference():
    model = Model.build(CONFIG)
    return ReferenceModel(model, random_params(model, seed=3), max_len=16, min_len=16)


def test_logits_do_not_depend_on_padding_or_later_tokens(reference):
    long = reference.logits(range(1, 13))
    assert long.shape == (12, CONFIG.vocab_size)
    np.testing.assert_allclose(reference.logits(range(1, 8)), long[:7], atol=1e-4)
    np.testing.assert_array_equal(reference.logits(range(1, 13), start=5), long[5:])


def test_a_gap_is_the_distance_to_the_largest_logit(reference):
    prompt = [1, 2, 3]
    logits = reference.logits(prompt)[-1]
    best, worst = int(logits.argmax()), int(logits.argmin())
    assert reference.greedy_gaps(prompt, [best]) == [0]
    assert reference.greedy_gaps(prompt, [worst]) == [logits.max() - logits.min()]


def test_lengths_double_from_the_shortest_program():
    lengths = ReferenceModel(Model.build(CONFIG), {}, max_len=512)._lengths
    assert lengths == [128, 256, 512]
