"""The sampler against plain numpy, and its draws against the distribution they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.runtime.batch import Batch, BatchShape
from kvflow_jax.runtime.sampler import (
    MAX_LOGPROBS,
    PenaltyState,
    SequenceState,
    sample,
    score,
)

VOCAB = 600  # not a multiple of the sampler's own block
NUM_SEQ_SLOTS, NUM_MASK_SLOTS = 4, 2
NUM_ROWS = (64, 2000, 20_000)
NO_PENALTIES = PenaltyState.zeros(NUM_SEQ_SLOTS, VOCAB)
NO_MASKS = np.zeros((NUM_MASK_SLOTS, -(-VOCAB // 32)), np.int32)
sample_exactly = jax.jit(sample)


def sample_rows(logits, rows, penalties, masks, positions):
    """Sample with one of few numbers of rows, because each compiles for two seconds.

    The last row is repeated, and zeros follow the masks.
    """
    num_rows = len(logits)
    padding = next(size for size in NUM_ROWS if size >= num_rows) - num_rows

    def padded(array):
        return np.concatenate([array, np.repeat(array[-1:], padding, axis=0)])

    masks = np.concatenate([masks, NO_MASKS])[:NUM_MASK_SLOTS]
    sampled = sample_exactly(
        padded(logits), jax.tree.map(padded, rows), penalties, masks, padded(positions)
    )
    return jax.tree.map(lambda array: array[:num_rows], jax.device_get(sampled))


def rows_of(num_rows, **settings):
    """Rows with the same settings, or each with its own; settings that are not given are off."""
    rows = Batch.empty(BatchShape(0, num_rows, 1), 1, num_seq_slots=NUM_SEQ_SLOTS).sampling
    for name, value in settings.items():
        getattr(rows, name)[:] = value
    return rows


@pytest.fixture(scope="module")
def draw():
    def call(
        logits,
        *,
        temperature=1.0,
        seed=0,
        position=0,
        penalties=NO_PENALTIES,
        sample=sample_rows,
        **how,
    ):
        n = len(logits)
        rows = rows_of(n, temperature=temperature, **how)
        rows.seed[:, 1] = seed
        positions = np.broadcast_to(np.asarray(position, np.int32), (n,)).copy()
        tokens, _ = sample(np.asarray(logits, np.float32), rows, penalties, NO_MASKS, positions)
        return np.asarray(tokens)

    return call


def kept(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, top_n_sigma=0.0):
    """Probabilities after temperature, top-n-sigma, min-p, top-k and top-p, by sorting."""
    scaled = np.asarray(logits, np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    if top_n_sigma:
        probs[scaled < scaled.max() - top_n_sigma * scaled[scaled > -np.inf].std()] = 0
    probs /= probs.sum()
    probs[probs < min_p * probs.max()] = 0
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0
    total = np.cumsum(probs[order])
    last = int(np.argmax(total >= top_p * total[-1]))
    if top_p < 1:
        probs[order[last + 1 :]] = 0
    return probs / probs.sum()


def test_zero_temperature_samples_the_likeliest_token(draw):
    logits = np.random.default_rng(0).normal(size=(64, VOCAB))
    assert (draw(logits, temperature=0.0, top_k=5, top_p=0.1) == logits.argmax(-1)).all()


@pytest.mark.parametrize("how", [{"top_p": p} for p in (1e-9, 1e-40, 1e-45)])
@pytest.mark.parametrize("temperature", [1.0, 1e-5, 1e-37, 1e-45])
def test_tiny_settings_sample_the_likeliest_token(draw, how, temperature):
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
        {"top_k": 2**31 - 1},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"min_p": 0.05, "top_p": 0.9, "top_k": 40, "temperature": 1.5},
        {"top_n_sigma": 1.0},
        {"top_n_sigma": 1.0, "temperature": 2.0},
        {"top_n_sigma": 1.5, "min_p": 0.05, "top_p": 0.9, "top_k": 40},
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


def mask_of(*tokens):
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_a_grammar_samples_among_the_tokens_of_its_mask(temperature):
    logits = np.random.default_rng(0).normal(size=(3, VOCAB)).astype(np.float32)
    rows = rows_of(3, temperature=temperature)
    position = np.zeros(3, np.int32)
    masks = np.stack([mask_of(5, 31), mask_of(32, VOCAB - 1)])
    rows.mask_slot[:] = [1, 0, 0]
    without, _ = sample_rows(logits, rows, NO_PENALTIES, masks, position)
    rows.has_grammar[:] = [True, False, True]
    tokens, _ = sample_rows(logits, rows, NO_PENALTIES, masks, position)
    assert int(tokens[0]) in (32, VOCAB - 1)
    assert int(tokens[1]) == int(without[1])
    assert int(tokens[2]) in (5, 31)
    if not temperature:
        assert int(tokens[2]) == (5 if logits[2, 5] > logits[2, 31] else 31)


def test_logprobs_are_those_of_the_model_whatever_the_mask():
    logits = np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32)
    rows = rows_of(1, temperature=0.0, wants_logprobs=True, has_grammar=True)
    rows.seq_slot[:] = 0
    tokens, logprobs = sample_rows(
        logits, rows, NO_PENALTIES, mask_of(7)[None], np.zeros(1, np.int32)
    )
    assert tokens.tolist() == [7]
    expected = jax.nn.log_softmax(logits)[0]
    np.testing.assert_allclose(logprobs.chosen, expected[7:8], atol=1e-5)
    assert int(logprobs.top_ids[0, 0]) == int(logits.argmax())


def test_a_ban_of_stop_tokens_gives_way_where_the_mask_allows_only_them():
    logits = np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32)
    state = SequenceState(
        seq_slot=np.int32(0),
        tokens=np.zeros(4, np.int32),
        num_prompt=np.int32(1),
        num_tokens=np.int32(1),
        stop_ids=np.array([7], np.int32),
        bias_ids=np.array([VOCAB], np.int32),
        bias=np.zeros(1, np.float32),
    )
    penalties = NO_PENALTIES.load_sequence_state(state)
    rows = rows_of(2, temperature=0.0, has_grammar=True, needs_sampler_state=True, bans_stops=True)
    rows.seq_slot[:] = 0
    position = np.zeros(2, np.int32)
    tokens, _ = sample_rows(logits, rows, penalties, mask_of(7)[None], position)
    assert tokens.tolist() == [7, 7]
    tokens, _ = sample_rows(logits, rows, penalties, mask_of(7, 9)[None], position)
    assert tokens.tolist() == [9, 9]


def test_a_draw_depends_on_seed_and_position_alone(draw):
    logits = np.random.default_rng(2).normal(size=(1, VOCAB))
    # Batches of different sizes, which are different programs.
    one = draw(logits, seed=5, position=3, sample=sample_exactly)
    crowd = np.concatenate([np.random.default_rng(3).normal(size=(30, VOCAB)), logits])
    assert draw(crowd, seed=5, position=3, sample=sample_exactly)[-1] == one[0]
    many = draw(np.tile(logits, (200, 1)), seed=5, position=np.arange(200))
    assert len(set(many.tolist())) > 50
    assert (draw(np.tile(logits, (200, 1)), seed=6, position=np.arange(200)) != many).any()


def test_rows_are_independent_of_each_others_settings(draw):
    logits = np.random.default_rng(4).normal(size=(4, VOCAB)).astype(np.float32)
    rows = rows_of(
        4,
        temperature=[0.0, 1.0, 1.0, 1.0],
        top_k=[0, 1, 0, 0],
        top_p=[1.0, 1.0, 1e-6, 1.0],
        top_n_sigma=[0.0, 0.0, 0.0, 1e-6],
    )
    tokens, _ = sample_rows(logits, rows, NO_PENALTIES, NO_MASKS, np.zeros(4, np.int32))
    assert (np.asarray(tokens) == logits.argmax(-1)).all()


def test_a_row_without_top_n_sigma_draws_the_same_beside_one_with_it(draw):
    logits = np.tile(np.random.default_rng(5).normal(size=VOCAB), (200, 1))
    alone = draw(logits, position=np.arange(200))
    mixed = draw(logits, position=np.arange(200), top_n_sigma=[0.0, 1.0] * 100)
    assert (alone[::2] == mixed[::2]).all()
    assert (alone[1::2] != mixed[1::2]).any()


def test_banned_tokens_are_no_part_of_the_deviation(draw):
    logits = np.tile(np.random.default_rng(6).normal(size=VOCAB) * 2, (2000, 1))
    logits[:, :500] = -np.inf
    drawn = draw(logits, position=np.arange(2000), top_n_sigma=1.0)
    assert set(drawn) <= set(np.flatnonzero(kept(logits[0], top_n_sigma=1.0)))


def test_extreme_logits_give_tokens_of_the_vocabulary(draw):
    logits = np.full((3, VOCAB), -1e30)
    logits[0, 599] = 50.0
    logits[1, 0] = 1e30
    drawn = draw(logits, position=np.arange(3))
    assert drawn[0] == 599
    assert drawn[1] == 0
    assert 0 <= drawn[2] < VOCAB


class Sequence:
    """The penalty state of one seq_slot among several, and the same counts in plain Python."""

    def __init__(self, prompt, output, *, stops=(), bias=None, seq_slot=2):
        self.seq_slot, self.prompt, self.output = seq_slot, prompt, output
        self.stops, self.bias = list(stops), bias or {}
        tokens = np.zeros(64, np.int32)
        tokens[: len(prompt) + len(output)] = [*prompt, *output]
        stop_ids, bias_ids = np.full(8, VOCAB, np.int32), np.full(16, VOCAB, np.int32)
        values = np.zeros(16, np.float32)
        stop_ids[: len(self.stops)] = self.stops
        bias_ids[: len(self.bias)] = list(self.bias)
        values[: len(self.bias)] = list(self.bias.values())
        state = SequenceState(
            seq_slot=np.int32(seq_slot),
            tokens=tokens,
            num_prompt=np.int32(len(prompt)),
            num_tokens=np.int32(len(prompt) + len(output)),
            stop_ids=stop_ids,
            bias_ids=bias_ids,
            bias=values,
        )
        stale = PenaltyState(jnp.full((4, VOCAB), 12345), jnp.full((4, VOCAB), 9.0))
        self.device = stale.load_sequence_state(state)

    def adjusted(
        self,
        logits,
        *,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        ban=False,
    ):
        out = np.asarray(logits, np.float64).copy()
        for token, value in self.bias.items():
            out[token] += value
        if ban:
            out[self.stops] = -np.inf
        for token in {*self.prompt, *self.output}:
            out[token] *= 1 / repetition_penalty if out[token] > 0 else repetition_penalty
        for token in set(self.output):
            out[token] -= frequency_penalty * self.output.count(token) + presence_penalty
        return out


@pytest.mark.parametrize(
    "how",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.5},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -2.0},
        {"presence_penalty": 1.5},
        {
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.3,
            "presence_penalty": -0.4,
            "ban": True,
        },
        {"ban": True},
        {},
    ],
    ids=str,
)
def test_penalties_bias_and_bans_equal_numpy(how):
    rng = np.random.default_rng(7)
    prompt = rng.integers(0, 40, 20).tolist()
    output = rng.integers(20, 60, 15).tolist()
    sequence = Sequence(prompt, output, stops=[3, 41], bias={5: 20.0, 50: -100.0, 599: 1.5})
    logits = (rng.normal(size=VOCAB) * 3).astype(np.float32)
    logits[3] = 60.0  # a stop token that would win
    settings = {name: value for name, value in how.items() if name != "ban"}
    rows = rows_of(2, seq_slot=sequence.seq_slot, needs_sampler_state=[True, False], **settings)
    rows.bans_stops[:] = how.get("ban", False)
    # Compare the likeliest token, then the likeliest of the rest, and so on.
    left = sequence.adjusted(logits, **how)
    for _ in range(5):
        tokens, _ = sample_rows(
            np.stack([logits, logits]), rows, sequence.device, NO_MASKS, np.zeros(2, np.int32)
        )
        assert int(tokens[0]) == int(np.argmax(left))
        assert int(tokens[1]) == int(np.argmax(logits))  # a row without penalties has none
        logits[int(tokens[0])] = left[int(tokens[0])] = -np.inf


def test_the_penalty_state_counts_the_samples_of_steps():
    sequence = Sequence([1, 2], [3, 3])
    # seq_slot 4 is out of range.
    device = sequence.device.count(np.array([2, 4, 2]), np.array([3, 9, 7]))
    sequence.output += [3, 7]
    again = Sequence(sequence.prompt, sequence.output).device
    np.testing.assert_array_equal(device.counts[2], again.counts[2])
    np.testing.assert_array_equal(device.counts[3], np.full(VOCAB, 12345))


def test_draws_follow_the_penalised_distribution(draw):
    num_draws = 20_000
    sequence = Sequence([1, 2, 3], [4, 4, 5], bias={6: 3.0})
    logits = np.random.default_rng(1).normal(size=VOCAB)
    logits[10:] -= 20
    how = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2}
    expected = kept(sequence.adjusted(logits, **how)) * num_draws
    drawn = draw(
        np.tile(logits, (num_draws, 1)),
        position=np.arange(num_draws),
        penalties=sequence.device,
        seq_slot=sequence.seq_slot,
        needs_sampler_state=True,
        **how,
    )
    counts = np.bincount(drawn, minlength=VOCAB)[:10]
    chi2 = ((counts - expected[:10]) ** 2 / expected[:10]).sum()
    assert chi2 < 9 + 5 * np.sqrt(18) + 10


def test_logprobs_are_the_models_own(draw):
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(4, VOCAB)) * 3).astype(np.float32)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    rows = rows_of(4, temperature=1.3, top_k=30, wants_logprobs=[True, False, True, True])
    tokens, logprobs = sample_rows(
        logits, rows, NO_PENALTIES, NO_MASKS, np.arange(4, dtype=np.int32)
    )
    taken = exact[np.arange(4), np.asarray(tokens)]
    np.testing.assert_allclose(logprobs.chosen, taken, atol=1e-4)
    order = np.argsort(-exact, axis=-1)[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(logprobs.top_ids, order)
    np.testing.assert_allclose(logprobs.top, np.take_along_axis(exact, order, -1), atol=1e-4)
    again = score(jnp.asarray(logits), tokens)
    np.testing.assert_allclose(again.chosen, logprobs.chosen, atol=1e-5)


def test_a_small_vocabulary_has_fewer_logprobs():
    logits = np.zeros((1, 5), np.float32)
    rows = rows_of(1, wants_logprobs=True)
    _, logprobs = sample_exactly(
        logits, rows, PenaltyState.zeros(1, 5), NO_MASKS, np.zeros(1, np.int32)
    )
    assert logprobs.top_ids.shape == (1, 5)
    np.testing.assert_allclose(logprobs.top, np.log(0.2), atol=1e-6)
