"""What is particular to OLMo 2: where its norms are."""

from kvflow_jax.models.families.olmo2 import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from tests.models.families.expected import Expected

VARIANTS = {
    "olmo2-mha-biased": {**FAMILY.tiny, "num_key_value_heads": 4, "attention_bias": True},
}

EXPECTED = {
    "olmo2": Expected(
        logits=(
            (0.40042, 0.60521, -2.58174, -1.38889, -1.76852),
            (-0.97935, 0.65546, -0.49081, 1.16216, -0.86091),
            (0.37687, 0.10678, -0.32574, -1.18533, -0.93777),
            (-1.48529, -1.06592, -0.90716, 1.08866, 0.73199),
        ),
        greedy=(
            *(20, 9, 258, 74, 211, 210, 2, 20, 9, 210, 130, 139, 111, 127, 212, 258),
            *(211, 111, 130, 258, 111, 293, 6, 293, 276, 211, 111, 212, 211, 111, 293, 6),
        ),
    ),
    "olmo2-mha-biased": Expected(
        logits=(
            (0.73192, 0.72003, 0.14776, -0.08286, 1.48651),
            (0.3507, 0.43962, 0.91446, 0.20704, 1.12611),
            (0.44268, 0.4147, 0.59937, 0.30273, 0.95821),
            (0.12752, 0.64931, 0.48207, 1.09074, 1.28592),
        ),
        greedy=(
            *(110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110),
            *(110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110),
        ),
    ),
}


def test_norms_are_after_attention_and_mlp_and_over_all_heads():
    specs = Model.build(read_config(FAMILY.tiny)).stacked_specs
    shapes = {name: spec.shape for name, spec in specs.items() if "norm" in name}
    assert shapes == {
        "layers.attention.q_proj_norm.weight": (3, 64),
        "layers.attention.k_proj_norm.weight": (3, 32),
        "layers.attention_out_norm.weight": (3, 64),
        "layers.mlp_out_norm.weight": (3, 64),
        "final_norm.weight": (64,),
    }
