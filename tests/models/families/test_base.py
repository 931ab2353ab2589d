"""A record whose names are missing or wrong is rejected when it is made."""

import dataclasses

import pytest

from kvflow_jax.models.families.base import LLAMA_TENSORS, Target, without
from kvflow_jax.models.families.llama import FAMILY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "model family '': name must be lower-case words"),
        ({"name": "Llama_2"}, "model family 'Llama_2': name must be lower-case words"),
        ({"architectures": ()}, "architectures is empty"),
        (
            {"tensors": {**LLAMA_TENSORS, "x": Target("layers.mlp.gate", "up")}},
            "tensor x fills layers.mlp.gate:up, which is no weight; weights: embed, final_norm",
        ),
        ({"tensors": {"x": Target("embed", "z")}}, "tensor x fills embed:z"),
        ({"tensors": {"x.{n}": Target("embed")}}, r"tensor x.{n} may have {i} and {e} only"),
        ({"name": "llama-2"}, "preset smollm2-135m is of family 'llama'"),
        ({"tiny": {}}, r"tiny names architecture \(none\)"),
        ({"tiny": {"architectures": ["X"]}}, "tiny names architecture X"),
    ],
)
def test_a_wrong_name_is_in_the_message(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FAMILY, **change)


def test_tensors_are_left_out_by_the_ends_of_their_names():
    rest = without(LLAMA_TENSORS, ".q_proj", "lm_head")
    left_out = LLAMA_TENSORS.keys() - rest.keys()
    assert left_out == {"lm_head", "model.layers.{i}.self_attn.q_proj"}
