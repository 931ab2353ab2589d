"""Grammars behind a reasoning: what may come when."""

from __future__ import annotations

import pytest

from experiments.make_folder import byte_level_tokenizer
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.compiler import GrammarCompiler
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.reasoning.syntax import ReasoningMarkup

TEXT_TAGS, SPECIAL_TAGS = ("<think>", "</think>"), ("[THINK]", "[/THINK]")
SPECS = {
    "json": (StructuredOutputsParams(json={"type": "integer"}), "12", "x"),
    "regex": (StructuredOutputsParams(regex="ab+"), "abb", "ba"),
    "choice": (StructuredOutputsParams(choice=["yes", "no"]), "yes", "maybe"),
    "grammar": (StructuredOutputsParams(grammar='start: "a" NUMBER\nNUMBER: /[0-9]+/'), "a1", "b1"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer in which one pair of tags is text, and the other are special tokens."""
    hf = byte_level_tokenizer()
    hf.add_special_tokens({"additional_special_tokens": list(SPECIAL_TAGS)})
    return Tokenizer(hf)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)


def is_allowed(mask, token: int) -> bool:
    return bool(mask[token // 32] >> (token % 32) & 1)


def accepts(compiler, tokenizer, spec, markup, text: str) -> bool:
    """Return whether an output may be this text."""
    matcher = compiler.compile(spec, markup).clone()
    for token in tokenizer.encode(text, add_special_tokens=False):
        if not is_allowed(matcher.mask, token):
            return False
        matcher.accept(token)
    return is_allowed(matcher.mask, tokenizer.eos_token_ids[0])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tags", [TEXT_TAGS, SPECIAL_TAGS], ids=["text", "special"])
def test_the_grammar_holds_behind_the_reasoning(compiler, tokenizer, name, tags) -> None:
    spec, yes, no = SPECS[name]
    begin, end = tags
    for is_open in (False, True):
        markup = ReasoningMarkup(begin, end, is_open)
        reasoning = f"{begin}\n{yes}? <b> I\n think: {no}. {end}"
        for gap in ("", "\n\n"):
            assert accepts(compiler, tokenizer, spec, markup, f"{reasoning}{gap}{yes}")
            assert not accepts(compiler, tokenizer, spec, markup, f"{reasoning}{gap}{no}")
        assert not accepts(compiler, tokenizer, spec, markup, reasoning)
        assert not accepts(compiler, tokenizer, spec, markup, f"{begin}{yes}")
        # An output without a begin tag.
        assert accepts(compiler, tokenizer, spec, markup, yes) != is_open
        assert accepts(compiler, tokenizer, spec, markup, f"{no}{end}{yes}") == is_open


def test_an_error_is_that_of_the_grammar_alone(compiler) -> None:
    markup = ReasoningMarkup(*TEXT_TAGS, is_open=True)
    empty = StructuredOutputsParams(grammar='start: start "a"')
    for spec in (StructuredOutputsParams(regex="("), empty):
        errors = []
        for reasoning in (None, markup):
            with pytest.raises(InvalidRequestError) as raised:
                compiler.compile(spec, reasoning)
            errors.append(str(raised.value))
        assert errors[0] == errors[1]


def test_the_same_grammar_is_compiled_once_for_each_reasoning(compiler) -> None:
    spec = StructuredOutputsParams(regex="a")
    markups = [None, *(ReasoningMarkup(*TEXT_TAGS, is_open) for is_open in (False, True))]
    compiled = [compiler.compile(spec, markup) for markup in (*markups, *markups)]
    assert len(set(map(id, compiled))) == 3
