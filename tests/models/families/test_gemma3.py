"""What is particular to Gemma 3: two kinds of layers, multimodal checkpoints, the norm's offset."""

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.gemma3 import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from kvflow_jax.models.rope import RopeConfig
from tests.models import tiny
from tests.models.families.expected import Expected
from tests.models.sources import read_folder

VARIANTS = {
    "gemma3-linear-rope": {
        **FAMILY.tiny,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 12,
    },
}

EXPECTED = {
    "gemma3": Expected(
        logits=(
            (2.05771, 1.61614, 0.53354, -1.75529, 0.80121),
            (-0.51284, 1.88795, -0.36054, 0.76135, 2.00893),
            (1.27416, -0.46861, 0.64051, 1.01807, 0.3134),
            (-0.88588, -0.85987, 1.74512, 1.43199, 0.27836),
        ),
        greedy=(
            *(51, 213, 213, 213, 213, 213, 213, 213, 213, 213, 213, 213, 213, 52, 52, 52),
            *(52, 52, 52, 52, 52, 52, 52, 52, 52, 52, 52, 131, 131, 131, 131, 131),
        ),
    ),
    "gemma3-linear-rope": Expected(
        logits=(
            (2.88499, 1.10513, -0.31151, -0.84391, 0.06969),
            (1.86418, 0.35357, -0.03112, 0.26206, 1.31122),
            (-0.25775, -0.63464, 0.62454, 0.95604, -2.05184),
            (-2.85399, -1.49732, -0.90052, 1.90167, -1.43166),
        ),
        greedy=(
            *(78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78),
            *(78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78, 78),
        ),
    ),
}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not"),
        ({"layer_types": ["chunked_attention"] * 4}, "found 4 of chunked_attention"),
        ({"layer_types": ["full_attention"] * 3}, "each of 4 layers, found 3"),
        ({"sliding_window_pattern": 0}, "must be above 0 and finite, but sliding_window_pattern"),
    ],
)
def test_fields_that_are_not_supported_are_rejected(change, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config({**FAMILY.tiny, **change})


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({}, (12, 12, 0, 12)),
        # It hides nothing, but these layers have another RoPE.
        ({"sliding_window": 128, "max_position_embeddings": 128}, (128, 128, 0, 128)),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, (0, 0, 0, 12)),
    ],
)
def test_all_layers_but_each_third_have_a_window(change, windows):
    assert read_config({**FAMILY.tiny, **change}).windows == windows


def test_rope_parameters_by_kind_of_layer():
    """As transformers 5 writes them."""
    old = VARIANTS["gemma3-linear-rope"]
    new = {key: value for key, value in old.items() if not key.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
    }
    assert read_config(new) == read_config(old)


def test_tied_embeddings_may_be_overridden_outside_of_text_config():
    text = {**FAMILY.tiny, "tie_word_embeddings": True}
    hf = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    assert read_config(hf).tie_embeddings
    assert not read_config(hf | {"tie_word_embeddings": False}).tie_embeddings


def test_the_text_config_of_a_multimodal_model_is_read():
    """That of gemma-3-4b-it, which leaves out the fields that have transformers' defaults."""
    hf = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    config = read_config(hf)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
    assert (config.head_dim, config.query_scalar, config.eos_token_ids) == (256, 256, (1, 106))
    assert config.windows == ((1024,) * 5 + (0,)) * 5 + (1024,) * 4
    assert config.rope == RopeConfig(1_000_000.0, "linear", 8.0)
    assert config.local_rope == RopeConfig(10_000.0)
    assert config.tie_embeddings


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_language_model_of_a_multimodal_checkpoint_is_loaded(tmp_path, prefix):
    weights = tiny.hf_weights(FAMILY.tiny)
    model = Model.build(read_config(FAMILY.tiny))
    expected = read_folder(model, tiny.write_folder(tmp_path / "text", FAMILY.tiny))
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in weights.items()}
    tower = "model.vision_tower" if prefix.startswith("model.") else "vision_tower"
    renamed[f"{tower}.embeddings.weight"] = np.zeros((3, 3), np.float32)
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", FAMILY.tiny, weights=renamed))
    for name, weight in expected.items():
        np.testing.assert_array_equal(stacked[name], weight)


def test_norms_multiply_by_one_more_than_is_stored(tmp_path):
    model = Model.build(read_config(FAMILY.tiny))
    stored = tiny.hf_weights(FAMILY.tiny)["model.norm.weight"]
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", FAMILY.tiny))
    np.testing.assert_array_equal(stacked["final_norm.weight"], stored + 1)


@pytest.mark.parametrize(
    ("num_layers", "pattern", "query_scalar", "num_windows"),
    [(4, None, 24.0, 4), (4, 2, 24.0, 2), (4, [True, False] * 2, 24.0, 2), (62, None, 16.0, 52)],
)
def test_a_gguf_file_has_no_field_for_the_query_scalar(
    tmp_path, num_layers, pattern, query_scalar, num_windows
):
    """llama.cpp tells 27B, whose scalar is not its head_dim, by its depth."""
    gguf = pytest.importorskip("kvflow_jax.models.loading.gguf")
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    name = "gemma3.attention.sliding_window_pattern"
    changed = {"without": [name]} if pattern is None else {"fields": {name: pattern}}
    hf = {**FAMILY.tiny, "num_hidden_layers": num_layers}
    tensors = {"token_embd.weight": np.zeros((300, 64), np.float32)}
    path = tiny_gguf.write(tmp_path / "model.gguf", hf, tensors=tensors, **changed)
    config = gguf.GgufFile(path).config()
    assert config.query_scalar == query_scalar
    assert sum(window > 0 for window in config.windows) == num_windows
