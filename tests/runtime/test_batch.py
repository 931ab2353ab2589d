"""Batch shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.runtime.batch import BatchShapes


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
