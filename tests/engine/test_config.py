"""Engine settings: what is out of range, and what contradicts what."""

import numpy as np
import pytest

from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be an integer of at least 1; got 0"),
        ({"max_num_seqs": "4"}, "max_num_seqs must be an integer of at least 1; got '4'"),
        ({"max_num_seqs": True}, "max_num_seqs must be an integer"),
        ({"max_num_seqs": None}, "max_num_seqs must be an integer"),
        ({"page_size": -1}, "page_size must be an integer of at least 1"),
        ({"num_pages": 5, "pool_gib": 5}, "set num_pages or pool_gib, not both"),
        ({"pool_gib": 0}, "pool_gib must be a number above 0"),
        ({"pool_gib": float("nan")}, "pool_gib must be a number above 0; got nan"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"deterministic": "yes"}, "deterministic must be True or False"),
        ({"trace": "/no/such/folder/trace.json"}, "trace must be a file that can be written"),
        ({"cache": "hicache"}, "cache must be a CacheConfig; got 'hicache'"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_it(given, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**given)


def test_settings_of_none_and_numbers_of_numpy_are_valid():
    config = EngineConfig(max_model_len=None, max_num_seqs=np.int64(4), pool_gib=np.float32(0.5))
    assert config.max_num_seqs == 4
    assert config.cache == CacheConfig()
