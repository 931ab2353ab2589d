"""The fields of a tokenizer in a .gguf file: roles, unused tokens, chat templates."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.loading.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    GgufVocabulary,
)


def read(templates=(), **fields):
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return GgufVocabulary.read(HfFields(named | dict(templates)))


def test_unused_tokens_are_dropped_at_the_end_alone():
    vocabulary = read(tokens=[*"abcd"], token_type=[NORMAL, UNUSED, CONTROL, UNUSED])
    assert vocabulary.tokens == ("a", "b", "c")
    # Unless they have a role.
    vocabulary = read(tokens=[*"abcd"], token_type=[NORMAL] + [UNUSED] * 3, eos_token_id=2)
    assert vocabulary.tokens == ("a", "b", "c")
    assert vocabulary.token("eos") == "c"
    assert read(tokens=[*"ab"]).tokens == ("a", "b")


@pytest.mark.parametrize(("kind", "kept"), [(NORMAL, False), (BYTE, False), (CONTROL, True)])
def test_only_tokens_that_are_no_text_can_pad(kind, kept):
    vocabulary = read(tokens=["!"], token_type=[kind], padding_token_id=0, bos_token_id=0)
    assert vocabulary.token("padding") == ("!" if kept else None)
    assert vocabulary.token("bos") == "!"


def test_a_role_of_no_token_is_reported():
    fields = HfFields({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.eos_token_id": 7})
    GgufVocabulary.read(fields)
    with pytest.raises(ModelLoadError, match="the eos token 7 is none of the 1 tokens"):
        fields.problems.raise_if_any()


def test_tokens_by_type():
    vocabulary = read(tokens=[*"abc"], token_type=[UNKNOWN, NORMAL, CONTROL])
    assert vocabulary.types_of(UNKNOWN, CONTROL) == {"a": UNKNOWN, "c": CONTROL}


@pytest.mark.parametrize(
    ("scores", "types", "expected"),
    [
        ([0.0, -1.0], [NORMAL, NORMAL], True),
        ([-1000.0, -1000.0], [NORMAL, NORMAL], False),
        ([0.0, -1000.0], [CONTROL, NORMAL], False),
        ([0.0, -1.0], [], True),
        ([], [], False),
    ],
)
def test_equal_scores_are_none(scores, types, expected):
    assert read(tokens=[*"ab"], scores=scores, token_type=types).has_scores == expected


def test_chat_templates_by_name():
    one = {"tokenizer.chat_template": "plain"}
    assert read(one).chat_template == "plain"
    assert read().chat_template is None
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools"}
    assert read(one | named).chat_template == {"default": "plain", "tool_use": "tools"}
    # A name without its template.
    assert read(one | {"tokenizer.chat_templates": ["rag"]}).chat_template == "plain"
