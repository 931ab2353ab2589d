"""What is particular to Mistral: its window, and that llama.cpp stores it as llama."""

import numpy as np
import pytest

from kvflow_jax.models.families.llama import FAMILY as LLAMA
from kvflow_jax.models.families.mistral import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from tests.models import tiny
from tests.models.families.expected import Expected

VARIANTS = {}

EXPECTED = {
    "mistral": Expected(
        logits=(
            (-3.14842, 1.39745, 1.21476, 1.4443, 2.01635),
            (-1.34007, -0.53989, 1.65458, 0.07197, 1.50859),
            (-0.61223, 0.40675, -0.80453, -0.29558, 0.02033),
            (0.47893, 0.02421, 0.4504, -0.35054, 0.64302),
        ),
        greedy=(
            *(14, 13, 67, 198, 13, 67, 198, 152, 243, 9, 13, 13, 13, 13, 81, 223),
            *(278, 140, 23, 88, 23, 23, 23, 139, 260, 125, 102, 28, 107, 23, 139, 200),
        ),
    ),
}


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({}, (20, 20, 20)),
        ({"sliding_window": None}, ()),
        ({"sliding_window": 256, "max_position_embeddings": 256}, ()),
    ],
)
def test_every_layer_has_the_window_unless_it_covers_the_context(change, windows):
    assert read_config({**FAMILY.tiny, **change}).windows == windows


def test_a_missing_window_has_transformers_default():
    hf = {**FAMILY.tiny, "max_position_embeddings": 8192}
    del hf["sliding_window"]
    assert set(read_config(hf).windows) == {4096}


def test_it_is_stored_as_llama_without_its_window(tmp_path):
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    path = tiny_gguf.write(tmp_path / "model.gguf", FAMILY.tiny, form=LLAMA.gguf)
    folder = tiny.write_folder(tmp_path / "folder", {**FAMILY.tiny, "sliding_window": None})
    np.testing.assert_allclose(tiny.logits_of(path), tiny.logits_of(folder), atol=1e-4)
