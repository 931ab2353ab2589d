"""What is particular to Qwen3: norms of queries and keys, and heads of 128 dimensions."""

from kvflow_jax.models.families.qwen3 import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from tests.models.families.expected import Expected

VARIANTS = {}

EXPECTED = {
    "qwen3": Expected(
        logits=(
            (-1.50904, -0.79175, -1.81122, -0.97829, -2.56951),
            (-1.52058, 0.73318, -0.07701, -0.86256, -1.10221),
            (-1.41702, 0.59245, -0.69735, -1.26266, -0.25511),
            (-0.70275, 0.41125, 0.20345, -2.24858, 0.16026),
        ),
        greedy=(
            *(232, 274, 280, 150, 194, 247, 299, 299, 299, 299, 299, 176, 138, 260, 278, 97),
            *(110, 111, 110, 111, 243, 94, 29, 281, 166, 210, 202, 202, 202, 202, 202, 202),
        ),
    ),
}


def test_heads_have_128_dimensions_unless_the_config_says_otherwise():
    hf = dict(FAMILY.tiny)
    del hf["head_dim"]
    assert read_config(hf).head_dim == 128


def test_queries_and_keys_are_normalised():
    assert read_config(FAMILY.tiny).qk_norm == "head"
