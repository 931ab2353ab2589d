"""The keyword arguments of ``LLM`` are the fields of its configurations."""

from typing import get_type_hints

import pytest

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.api.options import LLMOptions, configs_of
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ConfigError

# Arguments of ``LLM`` of their own.
NAMED = {"model", "mode"}


def test_the_arguments_have_the_names_and_types_of_the_fields():
    types = {}
    for config in (LoadConfig(), EngineConfig(), CacheConfig()):
        hints = get_type_hints(type(config))
        types |= {setting.field: hints[setting.field] for setting in config.settings()}
    expected = {n: t for n, t in types.items() if n not in NAMED}
    assert get_type_hints(LLMOptions) == expected, "LLMOptions must list the fields of the configs"


def test_an_argument_reaches_the_config_that_has_the_field():
    options = {"dtype": "float32", "max_num_seqs": 3, "backup": "evict"}
    load, engine = configs_of("tiny", "hicache", options)
    assert load == LoadConfig("tiny", dtype="float32")
    assert engine == EngineConfig(max_num_seqs=3, cache=CacheConfig("hicache", backup="evict"))


def test_arguments_override_a_cache_config():
    cache = CacheConfig("hicache", guard=True, backup="evict")
    _, engine = configs_of("tiny", cache, {"guard": False})
    assert engine.cache == CacheConfig("hicache", guard=False, backup="evict")


def test_an_unknown_argument_suggests_the_nearest_one():
    with pytest.raises(TypeError, match="argument 'max_seqs'; did you mean 'max_num_seqs'"):
        configs_of("tiny", "kvflow", {"max_seqs": 3})


def test_a_wrong_value_is_an_error_that_names_the_argument():
    with pytest.raises(ConfigError, match="cache must be one of gpu-only, hicache, kvflow"):
        configs_of("tiny", "vllm", {})
    with pytest.raises(ConfigError, match="tensor_parallel must be an integer of at least 1"):
        configs_of("tiny", "kvflow", {"tensor_parallel": 0})
