"""What is particular to Llama: biases and kinds of RoPE."""

from kvflow_jax.models.families.llama import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.rope import RopeConfig
from tests.models.families.expected import Expected

VARIANTS = {
    "llama-untied-mha": {**FAMILY.tiny, "tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama-mqa-wide-head": {**FAMILY.tiny, "num_key_value_heads": 1, "head_dim": 32},
    "llama-llama3-rope": {
        **FAMILY.tiny,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-linear-rope-biased": {
        **FAMILY.tiny,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "attention_bias": True,
        "mlp_bias": True,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "hidden_size": 96,
    },
}

EXPECTED = {
    "llama": Expected(
        logits=(
            (0.10754, -0.63376, 0.53536, 1.8257, -0.41563),
            (1.46763, 0.12198, 3.60041, 1.30612, 0.58124),
            (-0.595, -0.11034, 1.0064, -0.59488, 0.85109),
            (-0.0972, -0.01558, 0.81462, -0.63139, -0.60935),
        ),
        greedy=(
            *(253, 229, 192, 252, 126, 283, 230, 250, 84, 229, 297, 297, 112, 98, 260, 126),
            *(99, 259, 237, 229, 232, 294, 170, 237, 246, 37, 88, 39, 247, 103, 9, 9),
        ),
    ),
    "llama-untied-mha": Expected(
        logits=(
            (-0.96423, 2.48799, -1.72696, 0.67595, -0.17542),
            (1.05309, 0.98184, -0.20405, -1.5918, 2.03182),
            (1.86166, 0.1173, -1.29542, -1.71714, 0.63254),
            (1.56046, -1.11955, 2.42973, -1.65722, 1.48319),
        ),
        greedy=(
            *(185, 159, 50, 56, 177, 152, 164, 130, 152, 130, 152, 130, 42, 56, 165, 50),
            *(165, 152, 244, 56, 165, 244, 76, 56, 152, 164, 14, 225, 42, 56, 56, 56),
        ),
    ),
    "llama-mqa-wide-head": Expected(
        logits=(
            (-0.7295, -0.58426, -1.63239, 1.08561, -1.41645),
            (-0.89695, -0.57886, 1.67695, 0.20377, 0.42464),
            (0.91288, 0.18972, 1.2609, 0.12354, 0.50398),
            (-1.04758, 2.41287, 0.6767, 0.19557, 0.85186),
        ),
        greedy=(
            *(57, 295, 263, 78, 57, 295, 263, 21, 21, 21, 158, 278, 284, 229, 295, 170),
            *(175, 50, 23, 95, 102, 84, 64, 64, 64, 64, 64, 27, 79, 295, 64, 297),
        ),
    ),
    "llama-llama3-rope": Expected(
        logits=(
            (1.43108, 0.86789, 0.18287, 1.53947, 0.51082),
            (0.64759, -1.04114, 0.42724, -0.66183, 1.26076),
            (2.25982, 1.25657, 0.79357, -0.6795, 1.07132),
            (-1.22278, -0.21043, 1.37841, 0.73317, 0.21251),
        ),
        greedy=(
            *(229, 47, 251, 126, 122, 237, 252, 2, 229, 297, 268, 285, 124, 139, 28, 294),
            *(252, 230, 157, 246, 90, 184, 137, 71, 214, 196, 252, 213, 50, 246, 143, 9),
        ),
    ),
    "llama-linear-rope-biased": Expected(
        logits=(
            (0.25521, -2.48143, 2.351, 0.74012, 0.10427),
            (-0.19021, 1.20646, 0.01781, 0.66654, -0.6641),
            (-1.94068, -0.92939, 0.49121, 0.97428, -1.45523),
            (0.95536, -0.47967, 2.03771, 1.14482, 0.79993),
        ),
        greedy=(
            *(110, 26, 62, 61, 229, 60, 149, 26, 62, 67, 166, 162, 65, 223, 136, 194),
            *(194, 180, 164, 239, 254, 11, 137, 150, 31, 114, 248, 248, 248, 110, 52, 224),
        ),
    ),
}


def test_absent_fields_have_transformers_defaults():
    hf = dict(FAMILY.tiny)
    for name in ("num_key_value_heads", "rope_theta", "tie_word_embeddings", "bos_token_id"):
        del hf[name]
    config = read_config(hf | {"eos_token_id": [5, 6]})
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 16
    assert config.rope == RopeConfig(theta=10_000.0)
    assert not config.tie_embeddings
    assert config.eos_token_ids == (5, 6)
    assert config.bos_token_id is None


def test_biases_are_read_from_two_fields():
    biased = read_config({**FAMILY.tiny, "attention_bias": True})
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, False)
    assert read_config({**FAMILY.tiny, "mlp_bias": True}).mlp_bias


def test_a_window_is_ignored():
    assert read_config({**FAMILY.tiny, "sliding_window": 16}).windows == ()
