"""The sampler against plain numpy, and its draws against the distribution they come from."""

import jax
import numpy as np
import pytest

from kvflow_jax.models.sampler import sample

VOCAB = 600  # not a multiple of the sampler's own block


@pytest.fixture(scope="module")
def draw():
    jitted = jax.jit(sample)

    def call(logits, *, temperature=1.0, top_k=0, top_p=1.0, seed=0, position=0):
        n = len(logits)
        seeds = np.zeros((n, 2), np.uint32)
        seeds[:, 1] = seed
        return np.asarray(
            jitted(
                np.asarray(logits, np.float32),
                np.full(n, temperature, np.float32),
                np.full(n, top_k, np.int32),
                np.full(n, top_p, np.float32),
                seeds,
                np.broadcast_to(np.asarray(position, np.int32), (n,)).copy(),
            )
        )

    return call


def kept(logits, *, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities after temperature, top-k and top-p, the long way."""
    scaled = np.asarray(logits, np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0
    total = np.cumsum(probs[order])
    last = int(np.argmax(total >= top_p * total[-1]))
    if top_p < 1:
        probs[order[last + 1 :]] = 0
    return probs / probs.sum()


def test_zero_temperature_takes_the_likeliest(draw):
    logits = np.random.default_rng(0).normal(size=(64, VOCAB))
    assert (draw(logits, temperature=0.0, top_k=5, top_p=0.1) == logits.argmax(-1)).all()


@pytest.mark.parametrize("how", [{"top_p": p} for p in (1e-9, 1e-40, 1e-45)])
@pytest.mark.parametrize("temperature", [1.0, 1e-5, 1e-37, 1e-45])
def test_vanishing_settings_take_the_likeliest(draw, how, temperature):
    logits = np.random.default_rng(0).normal(size=(64, VOCAB)) * 30
    assert (draw(logits, temperature=temperature, **how) == logits.argmax(-1)).all()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"top_k": 7},
        {"top_p": 0.6},
        {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"top_k": 1024},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(draw, how):
    num_draws = 20_000
    logits = np.random.default_rng(1).normal(size=VOCAB) * 2
    expected = kept(logits, **how) * num_draws
    drawn = draw(np.tile(logits, (num_draws, 1)), position=np.arange(num_draws), **how)
    counts = np.bincount(drawn, minlength=VOCAB)
    assert len(counts) == VOCAB
    assert counts[expected == 0].sum() == 0
    # Chi-square over entries expected at least 5 times, the rest as one.
    common = expected >= 5
    pairs = [(counts[common], expected[common])]
    if expected[~common].sum() >= 5:
        pairs.append((counts[~common].sum()[None], expected[~common].sum()[None]))
    chi2 = sum(((c - e) ** 2 / e).sum() for c, e in pairs)
    degrees = max(1, sum(len(c) for c, _ in pairs) - 1)
    assert chi2 < degrees + 5 * np.sqrt(2 * degrees) + 10


def test_a_draw_depends_on_seed_and_position_alone(draw):
    logits = np.random.default_rng(2).normal(size=(1, VOCAB))
    one = draw(logits, seed=5, position=3)
    crowd = np.concatenate([np.random.default_rng(3).normal(size=(30, VOCAB)), logits])
    assert draw(crowd, seed=5, position=3)[-1] == one[0]
    many = draw(np.tile(logits, (200, 1)), seed=5, position=np.arange(200))
    assert len(set(many.tolist())) > 50
    assert (draw(np.tile(logits, (200, 1)), seed=6, position=np.arange(200)) != many).any()


def test_rows_are_independent_of_each_others_settings(draw):
    logits = np.random.default_rng(4).normal(size=(3, VOCAB)).astype(np.float32)
    out = np.asarray(
        sample(
            logits,
            np.array([0.0, 1.0, 1.0], np.float32),
            np.array([0, 1, 0], np.int32),
            np.array([1.0, 1.0, 1e-6], np.float32),
            np.zeros((3, 2), np.uint32),
            np.zeros(3, np.int32),
        )
    )
    assert (out == logits.argmax(-1)).all()


def test_extreme_logits_give_tokens_of_the_vocabulary(draw):
    logits = np.full((3, VOCAB), -1e30)
    logits[0, 599] = 50.0
    logits[1, 0] = 1e30
    drawn = draw(logits, position=np.arange(3))
    assert drawn[0] == 599
    assert drawn[1] == 0
    assert 0 <= drawn[2] < VOCAB
