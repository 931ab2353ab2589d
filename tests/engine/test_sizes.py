"""Engine sizes: set by the user, derived from free memory, or invalid."""

import logging

import jax
import pytest

from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.sizes import GIB, EngineSizes
from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.models.memory import FreeMemory
from tests.support.tiny_engine import CONFIG

PAGE_BYTES = 2 * 2 * 2 * 12 * 4 * 16  # layers, K and V, heads, width, float32, tokens


def resolve(**given):
    return EngineSizes.resolve(
        EngineConfig(**given), CONFIG, "float32", "cpu", FreeMemory.measure(jax.devices()[0])
    )


def test_unset_sizes_come_from_free_memory_and_are_logged(caplog):
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        sizes = resolve()
    assert sizes.max_model_len == CONFIG.max_model_len
    assert sizes.pool.num_pages > CONFIG.max_model_len // 16
    assert sizes.pool.nbytes <= 4 << 30
    assert "KV blocks" in caplog.text


def test_pool_gib_bounds_the_pool():
    sizes = resolve(pool_gib=100 * PAGE_BYTES / GIB)
    assert sizes.pool.page_bytes == PAGE_BYTES
    assert sizes.pool.num_pages == 100
    assert sizes.pool.nbytes <= 100 * PAGE_BYTES


def test_the_error_for_a_small_pool_has_the_missing_memory():
    with pytest.raises(CapacityError, match=r"needs 16 KV blocks, the pool has 9.*GiB more"):
        resolve(pool_gib=10 * PAGE_BYTES / GIB, max_model_len=256)
    with pytest.raises(CapacityError, match="pool-gib"):
        resolve(pool_gib=1 / GIB)


def test_the_default_context_is_cut_to_the_pool(caplog):
    with caplog.at_level(logging.WARNING, "kvflow_jax"):
        sizes = resolve(num_pages=9)
    assert sizes.max_model_len == 9 * 16
    assert "cut" in caplog.text


def test_a_length_above_the_models_context_is_an_error():
    with pytest.raises(ConfigError, match="exceeds the model's context of 256"):
        resolve(max_model_len=257)


def test_a_pool_in_pages_has_one_more_for_the_null_page():
    sizes = resolve(num_pages=20)
    assert sizes.pool.num_pages == 21
    assert sizes.cache.num_host_blocks == 20


def test_a_tile_is_a_multiple_of_the_page_and_at_most_a_step():
    assert resolve(num_pages=100).shapes.tile == 128
    assert resolve(num_pages=100, max_num_batched_tokens=40).shapes.tile == 32
    assert resolve(num_pages=100, page_size=200).shapes.tile == 200


def test_the_default_pool_is_a_share_of_free_memory():
    def pool_bytes(free, num_devices=1):
        sizes = EngineSizes.resolve(
            EngineConfig(), CONFIG, "float32", "cpu", free, num_devices=num_devices
        )
        return sizes.pool.nbytes

    def is_share(num_bytes, bound):
        return bound - PAGE_BYTES < num_bytes <= bound

    assert is_share(pool_bytes(FreeMemory(None, 80 << 20)), 20 << 20)
    assert is_share(pool_bytes(FreeMemory(20 << 20, 1 << 30)), 17 << 20)
    assert is_share(pool_bytes(FreeMemory(20 << 20, 1 << 30), num_devices=2), 34 << 20)


def test_a_host_tier_larger_than_host_memory_is_an_error():
    with pytest.raises(CapacityError, match=r"host tier of 3 GiB does not fit: 1\.0 GiB"):
        EngineSizes.resolve(
            EngineConfig(num_pages=100, cache=CacheConfig(host_cache_gib=3.0)),
            CONFIG,
            "float32",
            "cpu",
            FreeMemory(None, GIB + 101 * PAGE_BYTES),
        )
