import json

import pytest

from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.speculation.config import (
    NO_SPECULATION,
    SPECULATIVE_CONFIG,
    SpeculativeConfig,
)


def test_the_flag_takes_json_with_vllms_keys():
    text = '{"method": "suffix", "num_speculative_tokens": 4}'
    assert SPECULATIVE_CONFIG.of_text(text) == SpeculativeConfig(num_speculative_tokens=4)
    assert SPECULATIVE_CONFIG.of_text("none") == NO_SPECULATION
    assert SPECULATIVE_CONFIG.of_text('{"method": "ngram"}').num_corpus_tokens == 0
    assert SpeculativeConfig().num_corpus_tokens > 0


@pytest.mark.parametrize(
    "given",
    [
        {"method": "eagle"},
        {"num_speculative_tokens": -1},
        {"num_speculative_tokens": 65},
        {"num_speculative_tokens": "4"},
        {"suffix_decoding_max_tree_depth": 1},
        {"suffix_decoding_corpus_tokens": 1 << 30},
        {"model": "draft"},
        [],
        5,
    ],
)
def test_bad_settings_are_refused_with_the_keys_that_there_are(given):
    for refuse in (
        lambda: SPECULATIVE_CONFIG.of_text(json.dumps(given)),
        lambda: EngineConfig(speculative_config=given),
    ):
        with pytest.raises((ValueError, ConfigError), match=r"must be none, or a JSON object.*num"):
            refuse()


def test_it_is_on_unless_it_is_switched_off():
    assert EngineConfig().speculative_config == SpeculativeConfig()
    assert EngineConfig(speculative_config=None).speculative_config == NO_SPECULATION
    assert SPECULATIVE_CONFIG.of_text("null") == NO_SPECULATION


def test_a_mapping_and_json_make_equal_settings():
    config = EngineConfig(speculative_config={"num_speculative_tokens": 4})
    assert config == EngineConfig(speculative_config=SpeculativeConfig(num_speculative_tokens=4))


def test_text_that_is_no_json_is_refused():
    for text in ("", "suffix", "{"):
        with pytest.raises(ValueError, match="JSON object"):
            SPECULATIVE_CONFIG.of_text(text)
