"""What is particular to Qwen2: biases, and windows from some layer on."""

import pytest

from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.families.qwen2 import FAMILY, late_windows
from kvflow_jax.models.loading.hf_config import read_config
from tests.models.families.expected import Expected

VARIANTS = {
    "qwen2-late-windows-yarn": {
        **FAMILY.tiny,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}

EXPECTED = {
    "qwen2": Expected(
        logits=(
            (1.23856, -0.48671, -1.02621, 0.4408, -0.96852),
            (2.42943, 0.03172, 1.01318, 0.32592, -0.03682),
            (0.97302, -0.83589, -0.77309, -0.67046, 0.33139),
            (-0.92585, -0.31025, -1.35804, -1.9884, 0.59944),
        ),
        greedy=(
            *(59, 41, 2, 27, 243, 298, 237, 23, 243, 298, 298, 298, 267, 23, 263, 134),
            *(207, 78, 23, 52, 27, 202, 298, 248, 249, 202, 298, 152, 73, 27, 202, 202),
        ),
    ),
    "qwen2-late-windows-yarn": Expected(
        logits=(
            (1.80378, 0.11307, -3.82522, -0.43939, -0.80971),
            (-0.45353, -0.16325, -0.70097, 0.31246, -0.95403),
            (-0.72332, -0.63756, -0.3856, -1.14392, 0.11702),
            (-0.91906, -1.42366, 0.55001, 0.70748, 0.96549),
        ),
        greedy=(
            *(258, 258, 258, 258, 258, 258, 258, 258, 172, 166, 56, 52, 165, 15, 172, 227),
            *(12, 246, 35, 69, 20, 145, 23, 210, 171, 45, 258, 210, 45, 261, 81, 152),
        ),
    ),
}


def test_query_key_and_value_have_biases():
    config = read_config(FAMILY.tiny)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({}, ()),
        ({"use_sliding_window": True}, (0, 16, 16)),
        ({"use_sliding_window": True, "max_window_layers": 28}, ()),
    ],
)
def test_windows_start_at_a_layer_if_they_are_switched_on(change, windows):
    hf = {**FAMILY.tiny, **change}
    assert read_config(hf).windows == late_windows(HfFields(hf)) == windows


def test_a_missing_window_has_transformers_default():
    hf = {**FAMILY.tiny, "max_position_embeddings": 8192, "use_sliding_window": True}
    del hf["sliding_window"]
    assert read_config(hf).windows == (0, 4096, 4096)


def test_yarn_in_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("kvflow_jax.models.loading.gguf")
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    hf = VARIANTS["qwen2-late-windows-yarn"] | {"use_sliding_window": False}
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    assert gguf.GgufFile(path).config() == read_config(hf)
