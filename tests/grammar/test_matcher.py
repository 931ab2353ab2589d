"""One output within its grammar."""

import numpy as np
import pytest

from kvflow_jax.errors import GrammarError, StepFailedError
from kvflow_jax.grammar.compiler import GrammarCompiler
from kvflow_jax.grammar.matcher import num_mask_words, pack_mask
from kvflow_jax.grammar.spec import StructuredOutputsParams
from tests.support.grammar_engine import EOS, TOKENIZER, tokens_of

VOCAB_SIZE = 300  # the tokenizer has fewer
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE, TOKENIZER.eos_token_ids)


def matcher(**fields):
    return COMPILER.compile(StructuredOutputsParams(**fields)).clone()


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_a_mask_has_the_tokens_that_may_come_next():
    mask = matcher(regex="[ab]c").mask
    assert mask.dtype == np.int32
    assert mask.shape == (num_mask_words(VOCAB_SIZE),) == (10,)
    assert tokens_of(mask) == sorted(ids("a") + ids("b"))


def test_a_token_of_several_characters_is_allowed_where_they_are():
    assert set(ids("t") + ids("the")) <= set(tokens_of(matcher(regex="t[a-z]+").mask))


def test_the_end_of_text_is_allowed_exactly_where_the_grammar_may_end():
    one = matcher(regex="ab*")
    assert EOS not in tokens_of(one.mask)
    for token in ids("abb"):
        assert not one.accept(token)
        assert EOS in tokens_of(one.mask)
    assert one.accept(EOS)


def test_an_output_is_complete_where_nothing_may_follow():
    one = matcher(choice=["ab", "cd"])
    assert not one.accept(*ids("a"))
    assert one.accept(*ids("b"))
    assert one.is_complete
    assert tokens_of(one.mask) == [EOS]


def test_clones_advance_alone():
    one = matcher(regex="ab|ac")
    one.accept(*ids("a"))
    other = one.clone()
    assert one.accept(*ids("b"))
    assert not other.is_complete
    assert tokens_of(other.mask) == sorted(ids("b") + ids("c"))


def test_a_text_that_never_ends_is_an_error_of_the_grammar():
    # Every token of it is the only one, so that llguidance looks ahead without end.
    endless = matcher(grammar='start: "ab" start')
    with pytest.raises(GrammarError, match="cannot be followed"):
        endless.accept(*ids("a"))


def test_a_token_outside_the_grammar_is_an_error():
    with pytest.raises(StepFailedError, match="does not match the grammar"):
        matcher(regex="ab").accept(*ids("x"))


def test_a_set_of_tokens_is_packed():
    mask = pack_mask([0, 31, 32, 299], VOCAB_SIZE)
    assert (mask.dtype, mask.shape) == (np.int32, (num_mask_words(VOCAB_SIZE),))
    assert tokens_of(mask) == [0, 31, 32, 299]
