"""Sizes and constants that follow from a model's config."""

from dataclasses import replace

from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.rope import RopeConfig

LLAMA = PRESETS["llama-3.2-1b"]


def test_scores_are_scaled_by_the_head_dim_or_by_a_scalar_of_the_model():
    assert LLAMA.attention_config.scale == LLAMA.head_dim**-0.5
    assert replace(LLAMA, query_scalar=256.0).attention_config.scale == 1 / 16


def test_every_layer_has_a_window_entry():
    assert LLAMA.attention_config.windows == (0,) * LLAMA.num_layers
    assert not LLAMA.attention_config.has_windows
    windows = (512,) * LLAMA.num_layers
    assert replace(LLAMA, windows=windows).attention_config.has_windows


def test_end_tokens_are_added_once_and_only_within_the_vocabulary():
    config = replace(LLAMA, eos_token_ids=(2, 7))
    assert config.with_eos((7, 9, LLAMA.vocab_size, -1)).eos_token_ids == (2, 7, 9)


def test_a_length_selects_the_factors_of_both_ropes():
    rope = RopeConfig(kind="longrope", original_max_len=32, factors=(9.0,), short_factors=(1.0,))
    config = replace(LLAMA, rope=rope, local_rope=rope)
    assert [rope.factors for rope in config.for_len(32).ropes] == [(1.0,), (1.0,)]
    assert [rope.factors for rope in config.for_len(33).ropes] == [(9.0,), (9.0,)]
    assert len(replace(config, local_rope=None).for_len(32).ropes) == 1
