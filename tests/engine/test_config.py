"""Sizes: what is given, what is derived, what cannot be."""

import logging

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import GIB, EngineConfig, EngineSizes
from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.requests import sampling_params
from kvflow_jax.runtime import sampler
from kvflow_jax.runtime.batch import BatchShapes
from tests.support.tiny_engine import CONFIG

PAGE_BYTES = 2 * 2 * 2 * 12 * 4 * 16  # layers, K and V, heads, width, float32, tokens


def resolve(**given):
    return EngineSizes.resolve(EngineConfig(**given), CONFIG, "float32", jax.devices()[0])


def test_sizes_that_are_not_given_come_from_free_memory_and_are_logged(caplog):
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        sizes = resolve()
    assert sizes.max_model_len == CONFIG.max_model_len
    assert sizes.pool.num_pages > CONFIG.max_model_len // 16
    assert sizes.pool.nbytes <= 4 << 30
    assert "KV blocks" in caplog.text


def test_pool_gib_bound_the_pool():
    sizes = resolve(pool_gib=100 * PAGE_BYTES / GIB)
    assert sizes.pool.page_bytes == PAGE_BYTES
    assert sizes.pool.num_pages == 100
    assert sizes.pool.nbytes <= 100 * PAGE_BYTES


def test_too_little_memory_for_one_request_says_how_much_is_missing():
    with pytest.raises(CapacityError, match=r"needs 16 KV blocks, the pool has 9.*GiB more"):
        resolve(pool_gib=10 * PAGE_BYTES / GIB, max_model_len=256)
    with pytest.raises(CapacityError, match="pool-gib"):
        resolve(pool_gib=1 / GIB)


def test_a_context_that_was_not_asked_for_is_cut_to_the_pool(caplog):
    with caplog.at_level(logging.WARNING, "kvflow_jax"):
        sizes = resolve(num_pages=9)
    assert sizes.max_model_len == 9 * 16
    assert "cut" in caplog.text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_model_len": 257}, "exceeds the model's context of 256"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"page_size": -1}, "page_size must be at least 1"),
        ({"num_pages": 5, "pool_gib": 5}, "not both"),
        ({"pool_gib": 0}, "pool_gib must be above 0"),
        ({"pool_gib": float("nan")}, "pool_gib must be above 0"),
    ],
)
def test_settings_that_cannot_be(given, says):
    with pytest.raises(ConfigError, match=says):
        resolve(**given)


@pytest.mark.parametrize(
    ("cache", "safeguards", "admission_control"),
    [
        (CacheConfig(), True, False),
        (CacheConfig("hicache"), False, False),
        (CacheConfig(eviction="kvflow-cost"), True, True),
        (CacheConfig("hicache", guard=True, admission=True), True, True),
        (CacheConfig(eviction="kvflow-cost", guard=False, admission=False), False, False),
    ],
)
def test_what_guards_and_holds_back_unless_it_is_said(cache, safeguards, admission_control):
    settings = resolve(cache=cache).cache
    assert (settings.safeguards, settings.admission_control) == (safeguards, admission_control)


def test_as_many_logprobs_may_be_asked_for_as_a_step_reports():
    assert sampling_params.MAX_LOGPROBS == sampler.MAX_LOGPROBS


@pytest.mark.parametrize("max_num_seqs", [1, 2, 5, 8, 32, 256])
@pytest.mark.parametrize("max_prefill_tokens", [1, 64, 100, 512, 8192])
def test_shapes_are_few_and_the_largest_holds_everything(max_num_seqs, max_prefill_tokens):
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
def test_what_can_be_planned_can_be_laid_out(wanted, num_decode):
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
