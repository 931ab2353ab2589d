"""Batch shapes, and how chunks of requests are laid out in them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.requests.request import Chunk
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.batch import FLOAT_PARAMS, INT_PARAMS, Batch, BatchShape, BatchShapes
from tests.support.plain_request import make_request


@pytest.mark.parametrize("max_num_seqs", [1, 2, 5, 8, 32, 256])
@pytest.mark.parametrize("max_prefill_tokens", [1, 64, 100, 512, 8192])
def test_shapes_are_few_and_the_largest_holds_a_full_step(max_num_seqs, max_prefill_tokens):
    shapes = BatchShapes.plan(
        max_num_seqs=max_num_seqs,
        max_prefill_tokens=max_prefill_tokens,
        tile=64,
        page_size=16,
        pages_per_seq=8,
    )
    assert len(shapes.shapes) <= 16
    assert shapes.max_prefill_tokens >= max_prefill_tokens
    largest = [64] * (shapes.max_prefill_tokens // 64)
    assert any(shape.fits(max_num_seqs, largest) for shape in shapes.shapes)
    assert any(s.fits(max_num_seqs, []) and s.num_tiles == 0 for s in shapes.shapes)


@given(st.lists(st.integers(2, 700), max_size=12), st.integers(0, 8))
def test_every_plan_of_chunks_fits_a_shape(wanted, num_decode):
    shapes = BatchShapes.plan(
        max_num_seqs=8, max_prefill_tokens=512, tile=256, page_size=16, pages_per_seq=8
    )
    lengths: list[int] = []
    for want in wanted:
        length = shapes.longest_chunk(lengths, want)
        assert length == want or length % 16 == 0
        if length:
            lengths.append(length)
    assert any(shape.fits(num_decode, lengths) for shape in shapes.shapes)
    assert lengths or not wanted


def test_many_short_prompts_share_a_step():
    shapes = BatchShapes.plan(
        max_num_seqs=8, max_prefill_tokens=512, tile=256, page_size=16, pages_per_seq=8
    )
    lengths: list[int] = []
    while length := shapes.longest_chunk(lengths, 40):
        lengths.append(length)
    assert len(lengths) == 8


SMALL = BatchShapes.plan(
    max_num_seqs=3, max_prefill_tokens=16, tile=8, page_size=4, pages_per_seq=6
)


def chunk_of(prompt, start, length, *, seq_slot=0, samples=True, is_decode=False, **params):
    request = make_request(prompt, **params)
    request.seq_slot = seq_slot
    pages = np.arange(1, 2 + (start + length - 1) // 4, dtype=np.int32)
    return Chunk(request, start, length, pages, samples=samples, is_decode=is_decode)


def test_a_prompt_takes_whole_tiles_and_samples_in_its_last_row():
    prompt = list(range(10, 21))
    batch, sample_rows, starts = SMALL.build([chunk_of(prompt, 0, 11, seq_slot=2)])
    (row,), (start,) = sample_rows, starts
    num_decode = batch.shape.num_decode
    rows = slice(num_decode, num_decode + 2)
    assert row == num_decode + 1
    assert batch.tokens[start : start + 11].tolist() == prompt
    assert batch.query_start[rows].tolist() == [0, 8]
    assert batch.query_len[rows].tolist() == [8, 3]
    assert batch.page_table[row].tolist() == [1, 2, 3, 0, 0, 0]
    assert batch.sampling.seq_slot[row] == 2
    assert set(np.delete(batch.sampling.seq_slot, row)) == {SMALL.num_seq_slots}


def test_decode_rows_come_before_tiles_and_take_samples_the_host_has_not_seen():
    known = chunk_of([5, 6, 7], 2, 1, seq_slot=1, is_decode=True)
    in_flight = chunk_of([5, 6, 7], 3, 1, seq_slot=2, is_decode=True)
    prefill = chunk_of([8, 9], 0, 2)
    batch, sample_rows, starts = SMALL.build([prefill, known, in_flight])
    assert sample_rows.tolist() == [batch.shape.num_decode, 0, 1]
    assert starts.tolist() == [batch.shape.num_decode, 0, 1]
    assert batch.tokens[0] == 7
    assert batch.token_source[:2].tolist() == [-1, 2]
    assert batch.query_start[:2].tolist() == [2, 3]
    assert batch.query_len[: batch.shape.num_decode].sum() == 2


def test_a_chunk_that_ends_within_the_prompt_keeps_no_sample():
    batch, _, _ = SMALL.build([chunk_of(list(range(9)), 0, 4, samples=False)])
    assert (batch.sampling.seq_slot == SMALL.num_seq_slots).all()


def test_sampling_parameters_reach_the_row_of_the_sample():
    chunk = chunk_of(
        [1, 2, 3],
        *(0, 3),
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.4,
        min_tokens=1,
        logprobs=2,
    )
    chunk.request.seed = (5, 2**32 - 1)
    batch, (row,), _ = SMALL.build([chunk])
    sampling = batch.sampling
    for name in (*INT_PARAMS, *FLOAT_PARAMS):
        value = getattr(chunk.request.params, name)
        np.testing.assert_allclose(getattr(sampling, name)[row], value, rtol=1e-6)
    assert tuple(sampling.seed[row]) == chunk.request.seed
    assert sampling.needs_sampler_state[row]
    assert sampling.bans_stops[row]
    assert sampling.wants_logprobs[row]
    assert batch.wants_logprobs


def test_stop_tokens_are_banned_until_min_tokens_are_out():
    chunks = [
        chunk_of([1, 2, 3], 2 + i, 1, is_decode=True, min_tokens=2) for i in range(3)
    ]  # outputs before the sample: 0, 1, 2
    batch, rows, _ = SMALL.build(chunks)
    assert batch.sampling.bans_stops[rows].tolist() == [True, True, False]


def test_a_batch_of_padding_changes_nothing():
    batch = Batch.empty(BatchShape(1, 2, 8), 6, 3)
    assert not batch.query_len.any()
    assert (batch.token_source == -1).all()
    assert (batch.sampling.seq_slot == 3).all()
    assert not batch.wants_logprobs


def test_padding_is_greedy_and_changes_no_logits():
    sampling = Batch.empty(BatchShape(1, 2, 8), 6, 3).sampling
    off = SamplingParams(temperature=0.0)
    for name in (*INT_PARAMS, *FLOAT_PARAMS):
        assert set(getattr(sampling, name)) == {getattr(off, name)}
    assert not sampling.needs_sampler_state.any()


def test_a_temperature_too_small_for_float32_is_greedy():
    batch, (row,), _ = SMALL.build([chunk_of([1, 2, 3], 0, 3, temperature=9e-6)])
    assert batch.sampling.temperature[row] == 0.0


def test_deterministic_steps_hold_one_prompt_or_decode_rows():
    shapes = BatchShapes.plan(
        max_num_seqs=4,
        max_prefill_tokens=64,
        tile=8,
        page_size=4,
        pages_per_seq=6,
        deterministic=True,
    )
    assert [(s.num_decode, s.num_tiles) for s in shapes.shapes] == [(4, 0), (0, 1)]
    assert shapes.longest_chunk([], 20) == 8
    assert shapes.longest_chunk([8], 20) == 0
