"""Sliding windows are read from the kinds of layers, or from a family's rule."""

import pytest

from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.families.hf_windows import FULL, SLIDING, read_windows

HF = {"num_hidden_layers": 3, "max_position_embeddings": 64, "sliding_window": 16}


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({}, (0, 16, 16)),
        ({"layer_types": [SLIDING, FULL, SLIDING]}, (16, 0, 16)),
        ({"layer_types": [FULL] * 3}, ()),
        ({"sliding_window": None}, ()),
        ({"sliding_window": 0}, ()),
        ({"sliding_window": 64}, ()),
    ],
)
def test_layer_types_go_before_the_rule_of_the_family(change, windows):
    hf = HfFields(HF | change)
    assert read_windows(hf, lambda layer: layer > 0) == windows
    assert not hf.problems.messages()


def test_a_window_that_hides_nothing_is_kept_on_request():
    hf = HfFields(HF | {"sliding_window": 64})
    assert read_windows(hf, keep_longest=True) == (64, 64, 64)


@pytest.mark.parametrize(
    ("layer_types", "found"),
    [([SLIDING] * 2, "2 of sliding_attention"), ([SLIDING, FULL, "x"], "3 of full_attention, sl")],
)
def test_wrong_kinds_of_layers_are_reported(layer_types, found):
    hf = HfFields(HF | {"layer_types": layer_types})
    read_windows(hf)
    (message,) = hf.problems.messages()
    assert f"for each of 3 layers, found {found}" in message
