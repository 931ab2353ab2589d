"""Rules of llguidance's Lark."""

from __future__ import annotations

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.lark import LarkWriter, is_lark, regex_terminal
from kvflow_jax.grammar.spec import MAX_GRAMMAR_CHARS


def test_special_tokens_of_a_text_are_token_ids() -> None:
    lark = LarkWriter({"<|a|>": 7, "[B]": 8})
    assert lark.text('<|a|>\nx"[B][B]') == '<[7]> "\\nx\\"" <[8]> <[8]>'
    assert lark.is_special("[B]")
    assert not lark.is_special("[")
    assert lark.text("") == ""


def test_a_grammar_is_its_start_and_its_rules() -> None:
    lark = LarkWriter({})
    name = lark.rule('"a"', "[lazy]")
    assert lark.write(f'{name} "b"') == f'start: {name} "b"\n{name}[lazy]: "a"'


@pytest.mark.parametrize(
    ("regex", "terminal"), [("a/b", r"/a\/b/"), (r"a\/b", r"/a\/b/"), (r"\\/", r"/\\\//")]
)
def test_slashes_of_a_regular_expression_are_escaped_once(regex: str, terminal: str) -> None:
    assert regex_terminal(regex) == terminal


def test_lark_is_told_from_gbnf_by_its_start() -> None:
    assert is_lark('start: "a"')
    assert not is_lark('root ::= "a"')
    assert not is_lark('start ::= "a"')


def test_a_grammar_is_written_no_further_than_its_limit() -> None:
    lark = LarkWriter({})
    lark.rule("a" * (MAX_GRAMMAR_CHARS // 2))
    with pytest.raises(InvalidRequestError, match="more than") as raised:
        lark.rule("a" * (MAX_GRAMMAR_CHARS // 2))
    assert raised.value.param == "tools"
