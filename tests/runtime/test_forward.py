"""One step: which tokens are read, where KV is written, and which samples are kept."""

from functools import partial

import jax
import numpy as np
import pytest

from kvflow_jax.runtime import forward
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.forward import RunnerState, StepFns
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN
from tests.support.successor_model import MODEL, PARAMS, POOL, VOCAB

SHAPE = BatchShape(num_tiles=2, num_decode=2, tile=4)
SHAPES = BatchShapes((SHAPE,), 4, 8, POOL.page_size, pages_per_seq=4, num_seq_slots=3)
PAGES = [1, 3, 2, 4]
PROMPT = [5, 9, 2, 7, 1, 3]
STEPS = StepFns.of(MODEL)
run_step = jax.jit(STEPS.run_step)


def empty_batch():
    return Batch.empty(SHAPE, SHAPES.pages_per_seq, SHAPES.num_seq_slots)


def prefill():
    """Return the prompt in two tiles, whose sample is kept in seq_slot 1."""
    batch = empty_batch()
    batch.tokens[2:8] = PROMPT
    batch.page_table[2:] = PAGES
    batch.query_start[2:], batch.query_len[2:] = [0, 4], [4, 2]
    batch.sampling.seq_slot[3] = 1
    return batch


def decode(position):
    """Return a decode row whose token is the last sample in seq_slot 1."""
    batch = empty_batch()
    batch.page_table[0], batch.query_start[0], batch.query_len[0] = PAGES, position, 1
    batch.token_source[0] = batch.sampling.seq_slot[0] = 1
    return batch


def sequence_in(pool):
    """Return the token ids in a sequence's pages."""
    keys, values = pool.read(0, np.array(PAGES))
    np.testing.assert_array_equal(keys, values)
    return np.asarray(keys).ravel().astype(int).tolist()


@pytest.fixture
def zeros():
    return RunnerState.zeros(MODEL, POOL, SHAPES)


def test_prefill_writes_the_prompts_kv_and_samples_after_its_end(zeros):
    state, tokens, _ = run_step(PARAMS, zeros, prefill())
    assert sequence_in(state.pool) == [*PROMPT, 0, 0]
    assert tokens[3] == PROMPT[-1] + 1
    assert state.sampler.last_tokens.tolist() == [0, PROMPT[-1] + 1, 0]


def test_decode_feeds_the_last_sample_without_the_host(zeros):
    state, _, _ = run_step(PARAMS, zeros, prefill())
    for position in (6, 7):
        state, tokens, _ = run_step(PARAMS, state, decode(position))
    assert sequence_in(state.pool) == [*PROMPT, 4, 5]
    assert tokens[0] == state.sampler.last_tokens[1] == 6


def test_padding_writes_no_kv_and_keeps_no_sample(zeros):
    state, _, _ = run_step(PARAMS, zeros, empty_batch())
    assert not np.asarray(state.pool.data).any()
    assert not np.asarray(state.sampler.last_tokens).any()


def test_a_decode_row_may_bring_its_token_from_the_host(zeros):
    batch = decode(0)
    batch.token_source[0], batch.tokens[0] = -1, 11
    state, tokens, _ = run_step(PARAMS, zeros, batch)
    assert sequence_in(state.pool)[0] == 11
    assert tokens[0] == 12


def test_hidden_states_of_the_last_step_score_prompt_tokens(zeros):
    state, _, _ = run_step(PARAMS, zeros, prefill())
    targets = np.zeros(SCORE_CHUNK_LEN, np.int32)
    targets[:2] = PROMPT[0] + 1, PROMPT[2]  # the predicted token, and an unlikely one
    score = jax.jit(partial(forward.score_hidden, MODEL))
    scores = score([PARAMS["embed.weight"]], state.sampler.hidden, np.int32(2), targets)
    assert scores.chosen[0] > -1e-3
    assert scores.chosen[1] < -19
    np.testing.assert_array_equal(scores.top_ids[:2, 0], [PROMPT[0] + 1, PROMPT[1] + 1])
    assert scores.top_ids.shape == (SCORE_CHUNK_LEN, VOCAB)
