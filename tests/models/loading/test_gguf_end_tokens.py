"""A generation of a .gguf file ends at the ends that the file names and at those known by text."""

import pytest

from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.loading.gguf_end_tokens import END_TEXTS, end_token_ids
from kvflow_jax.models.loading.gguf_vocabulary import CONTROL, USER_DEFINED

NORMAL = 1


def ends(tokens, kind=CONTROL, **more):
    fields = {"tokens": ["the", *tokens], "token_type": [NORMAL, *[kind] * len(tokens)]} | more
    ids = end_token_ids(HfFields({f"tokenizer.ggml.{name}": v for name, v in fields.items()}))
    return [fields["tokens"][i] for i in ids]


@pytest.mark.parametrize("text", END_TEXTS)
@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
def test_a_file_that_names_one_end_ends_at_known_texts_too(text, kind):
    assert ends(["<x>", text], kind, eos_token_id=1) == ["<x>", text]


def test_the_ends_that_a_file_names_come_first_without_repeats():
    named = {"eos_token_id": 3, "eot_token_id": 2, "eom_token_id": 3, "eos_token_ids": [2, 4]}
    assert ends(["<|end|>", "<b>", "<|eot_id|>", "<d>"], **named) == [
        "<|eot_id|>",
        "<b>",
        "<d>",
        "<|end|>",
    ]


def test_text_that_is_spelled_like_an_end_is_no_end():
    assert ends(["</s>", "<eos>"], NORMAL) == []


def test_the_end_of_a_message_of_several_is_no_end():
    assert ends(["<|return|>", "<|call|>", "<|end|>"]) == ["<|return|>", "<|call|>"]
    assert ends(["<|return|>", "<|end|>"]) == ["<|return|>", "<|end|>"]
