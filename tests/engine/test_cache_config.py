"""Cache settings: which combinations are valid, and what each mode chooses."""

import pytest

from kvflow_jax.cache.policy import lru
from kvflow_jax.engine.cache_config import MAX_EXTENT_BYTES, CacheConfig, CacheSettings
from kvflow_jax.errors import ConfigError
from kvflow_jax.reuse.predictors import NONE


def resolve(config, *, block_bytes=1 << 20, num_pages=1000, free_host_bytes=1 << 40):
    return CacheSettings.resolve(
        config, block_bytes=block_bytes, num_pages=num_pages, free_host_bytes=free_host_bytes
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "lru"}, "cache must be one of gpu-only, hicache, kvflow; got 'lru'"),
        ({"eviction": "random"}, "eviction must be one of"),
        ({"backup": "never"}, "backup must be one of early, evict"),
        ({"host_cache_gib": -1.0}, "host_cache_gib must be a number of at least 0"),
        ({"host_cache_gib": float("nan")}, "host_cache_gib must be a number of at least 0"),
        ({"predictor": "oracle"}, "predictor must be one of context-tree, first-order, none"),
        ({"learned_order": "/nowhere/order"}, "learned_order must be a file that can be written"),
        ({"link_ratio": 0.0}, "link_ratio must be a number above 0"),
        ({"link_ratio": float("inf")}, "link_ratio must be a number above 0"),
        ({"eviction": 3}, "eviction must be one of lru, kvflow, kvflow-cost, or module:function"),
        ({"eviction": "json:nothing"}, "the eviction policy 'json:nothing' cannot be imported"),
        ({"mode": "gpu-only", "host_cache_gib": 1.0}, "no host tier: remove host_cache_gib"),
        ({"mode": "gpu-only", "prefetch": True}, "no host tier to prefetch from"),
        ({"prefetch": True, "host_cache_gib": 0.0}, "prefetch needs a host tier"),
    ],
)
def test_invalid_settings_raise_config_error(given, message):
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**given)


def test_each_mode_chooses_policy_prefetching_and_host_copies():
    modes = {mode: resolve(CacheConfig(mode)) for mode in ("gpu-only", "hicache", "kvflow")}
    assert {mode: s.eviction for mode, s in modes.items()} == {
        "gpu-only": "lru",
        "hicache": "lru",
        "kvflow": "kvflow",
    }
    assert [mode for mode, s in modes.items() if s.prefetches] == ["kvflow"]
    assert [mode for mode, s in modes.items() if s.offloads_everything] == ["hicache"]
    assert [mode for mode, s in modes.items() if not s.num_host_blocks] == ["gpu-only"]


@pytest.mark.parametrize(
    ("config", "safeguards", "admission_control"),
    [
        (CacheConfig(), True, False),
        (CacheConfig("hicache"), False, False),
        (CacheConfig(eviction="kvflow-cost"), True, True),
        (CacheConfig("hicache", guard=True, admission=True), True, True),
        (CacheConfig(eviction="kvflow-cost", guard=False, admission=False), False, False),
    ],
)
def test_safeguards_follow_the_mode_and_admission_control_the_policy_unless_set(
    config, safeguards, admission_control
):
    settings = resolve(config)
    assert (settings.safeguards, settings.admission_control) == (safeguards, admission_control)


def test_the_default_host_tier_is_as_large_as_the_pool_or_as_free_memory_allows():
    assert resolve(CacheConfig()).num_host_blocks == 1000
    assert resolve(CacheConfig(), free_host_bytes=10 << 20).num_host_blocks == 10


def test_a_host_tier_of_a_given_size_may_be_larger_than_the_pool():
    settings = resolve(CacheConfig(host_cache_gib=2.0), num_pages=10, free_host_bytes=0)
    assert settings.num_host_blocks == 2048
    assert resolve(CacheConfig(host_cache_gib=0.0)).num_host_blocks == 0


def test_blocks_are_offloaded_early_unless_only_at_eviction():
    assert resolve(CacheConfig(backup="early")).offloads_early
    assert not resolve(CacheConfig(backup="evict")).offloads_early


@pytest.mark.parametrize(
    ("block_bytes", "num_pages", "sizes"),
    [
        (1 << 10, 1000, (1, 4, 16, 64)),
        (MAX_EXTENT_BYTES // 4, 1000, (1, 4)),
        (2 * MAX_EXTENT_BYTES, 1000, (1,)),
        (1 << 10, 5, (1, 4)),
    ],
)
def test_extents_are_bounded_in_bytes_and_by_the_pool(block_bytes, num_pages, sizes):
    assert (
        resolve(CacheConfig(), block_bytes=block_bytes, num_pages=num_pages).extent_sizes == sizes
    )


@pytest.mark.parametrize(
    ("config", "uses_hints"),
    [
        (CacheConfig(), True),
        (CacheConfig(eviction="lru"), True),  # prefetch
        (CacheConfig(eviction="lru", prefetch=False), True),  # offload of what has a reader
        (CacheConfig(eviction="lru", prefetch=False, host_cache_gib=0), False),
        (CacheConfig(mode="gpu-only"), False),
        (CacheConfig(mode="gpu-only", eviction="kvflow"), True),
        (CacheConfig(mode="gpu-only", admission=True), True),
        (CacheConfig(mode="hicache"), False),
        (CacheConfig(mode="hicache", eviction=lru), False),
        (CacheConfig(mode="hicache", prefetch=True), True),
    ],
)
def test_hints_are_used_unless_all_is_lru(config, uses_hints):
    assert resolve(config).uses_hints is uses_hints


def test_an_order_is_learned_only_where_it_decides_something(tmp_path):
    path = str(tmp_path / "order")
    kvflow = resolve(CacheConfig(predictor="first-order", learned_order=path))
    assert (kvflow.predictor, kvflow.learned_order) == ("first-order", tmp_path / "order")
    assert resolve(CacheConfig()).predictor == "context-tree"
    lru_only = resolve(CacheConfig("gpu-only", learned_order=path))
    assert (lru_only.predictor, lru_only.learned_order) == ("none", None)


@pytest.mark.parametrize("switched_on", [{}, {"prefetch": True}, {"admission": True}])
@pytest.mark.parametrize("eviction", [None, "lru", "kvflow"])
@pytest.mark.parametrize("mode", ["hicache", "kvflow"])
def test_prompts_are_prepared_for_recognition_where_the_engine_recognises(
    mode, eviction, switched_on
):
    config = CacheConfig(mode=mode, eviction=eviction, **switched_on)
    assert config.recognises_callers == (resolve(config).predictor != NONE)
    config = CacheConfig(mode=mode, eviction=eviction, predictor=NONE, **switched_on)
    assert not config.recognises_callers
