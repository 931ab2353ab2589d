"""Engine sizes: set by the user, derived from free memory, or invalid."""

import logging
from dataclasses import replace

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
    sizes = resolve()
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        sizes.log(EngineConfig(), CONFIG)
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
    sizes = resolve(num_pages=9)
    with caplog.at_level(logging.WARNING, "kvflow_jax"):
        sizes.log(EngineConfig(num_pages=9), CONFIG)
    assert sizes.max_model_len == 9 * 16
    assert "cut" in caplog.text
    caplog.clear()
    resolve(num_pages=9, max_model_len=144).log(EngineConfig(max_model_len=144), CONFIG)
    assert "cut" not in caplog.text


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


@pytest.mark.parametrize(
    ("dtype", "platform", "tokens"),
    [("float32", "cpu", 256), ("bfloat16", "cpu", 512), ("bfloat16", "gpu", 2048)],
)
def test_a_step_has_more_prompt_tokens_where_they_are_computed_faster(dtype, platform, tokens):
    free = FreeMemory.measure(jax.devices()[0])
    sizes = EngineSizes.resolve(EngineConfig(num_pages=100), CONFIG, dtype, platform, free)
    assert sizes.shapes.max_prefill_tokens == tokens


def default_pool(free, num_devices=1):
    sizes = EngineSizes.resolve(
        EngineConfig(), CONFIG, "float32", "cpu", free, num_devices=num_devices
    )
    return sizes.pool.nbytes


def test_the_default_pool_is_a_share_of_free_memory():
    def is_share(num_bytes, bound, lost):
        return bound * (1 - lost) - 2 * PAGE_BYTES < num_bytes <= bound

    assert is_share(default_pool(FreeMemory(None, 80 << 20)), 20 << 20, 1 / 3)
    assert is_share(default_pool(FreeMemory(20 << 20, 1 << 30)), 17 << 20, 1 / 32)
    two_devices = default_pool(FreeMemory(20 << 20, 1 << 30), num_devices=2)
    assert is_share(two_devices, 34 << 20, 1 / 32)


def test_close_values_of_free_memory_give_few_shapes():
    def shapes(values):
        sizes = {default_pool(value) for value in values}
        # Also where the context is cut to the pool.
        cut = {
            EngineSizes.resolve(
                EngineConfig(), replace(CONFIG, max_model_len=1 << 20), "float32", "cpu", value
            ).shapes
            for value in values
        }
        return len(sizes), len(cut)

    # 12 GiB free, give or take one GiB in steps of 8 MiB.
    host = [FreeMemory(None, (12 << 30) + (i << 23)) for i in range(-128, 129)]
    assert max(shapes(host)) <= 2
    # Above the bound of the pool every size is the same.
    assert shapes([FreeMemory(None, n * GIB) for n in range(16, 64)]) == (1, 1)
    # A GPU with 40 GiB free, give or take 256 MiB.
    device = [FreeMemory((40 << 30) + (i << 22), 1 << 40) for i in range(-64, 65)]
    assert max(shapes(device)) <= 2


def test_a_pool_larger_than_free_memory_is_an_error():
    def resolve_for(free, **given):
        return EngineSizes.resolve(EngineConfig(**given), CONFIG, "float32", "cpu", free)

    host, device = FreeMemory(None, 8 * GIB), FreeMemory(4 * GIB, 8 * GIB)
    with pytest.raises(
        CapacityError, match=r"500\.0 GiB does not fit.*8\.0 GiB of host.*--pool-gib"
    ):
        resolve_for(host, pool_gib=500)
    with pytest.raises(CapacityError, match=r"4\.0 GiB of device memory"):
        resolve_for(device, pool_gib=5)
    assert resolve_for(device, pool_gib=3).pool.nbytes <= 3 * GIB
    with pytest.raises(CapacityError, match="num_pages"):
        resolve_for(host, num_pages=9 * GIB // PAGE_BYTES)


def test_a_host_tier_larger_than_host_memory_is_an_error():
    with pytest.raises(CapacityError, match=r"host tier of 3 GiB does not fit: 1\.0 GiB"):
        EngineSizes.resolve(
            EngineConfig(num_pages=100, cache=CacheConfig(host_cache_gib=3.0)),
            CONFIG,
            "float32",
            "cpu",
            FreeMemory(None, GIB + 101 * PAGE_BYTES),
        )


def pool_after(last_num_pages, free_gib, *, on_device=False, max_model_len=256):
    free_bytes = int(free_gib * GIB)
    free = FreeMemory(free_bytes, 64 * GIB) if on_device else FreeMemory(None, free_bytes)
    sizes = EngineSizes.resolve(
        EngineConfig(),
        replace(CONFIG, max_model_len=max_model_len),
        "float32",
        "gpu" if on_device else "cpu",
        free,
        last_num_pages=last_num_pages,
    )
    return sizes.pool.num_pages - 1


def test_the_size_of_the_last_start_is_taken_again_near_an_edge():
    edge_gib = pool_after(None, 12) * PAGE_BYTES * 4 / GIB  # the least free memory of this size
    for first_gib, second_gib in ((1.02, 0.99), (0.99, 1.02)):
        first = pool_after(None, edge_gib * first_gib)
        assert first != pool_after(None, edge_gib * second_gib)
        assert first == pool_after(first, edge_gib * second_gib)


@pytest.mark.parametrize(("last_gib", "now_gib"), [(4, 12), (12, 4), (14, 7)])
def test_a_size_that_no_longer_suits_the_memory_is_chosen_anew(last_gib, now_gib):
    last, fresh = pool_after(None, last_gib), pool_after(None, now_gib)
    assert pool_after(last, now_gib) == fresh != last


def test_a_size_too_small_for_a_request_is_chosen_anew():
    last = pool_after(None, 0.01)
    fresh = pool_after(None, 0.013)
    assert last < fresh
    assert pool_after(last, 0.013, max_model_len=16 * last) == last
    assert pool_after(last, 0.013, max_model_len=16 * fresh) == fresh


def test_device_memory_differs_less():
    last = pool_after(None, 70, on_device=True)
    assert pool_after(last, 69.5, on_device=True) == last
    assert pool_after(last, 60, on_device=True) < last
