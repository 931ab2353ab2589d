"""A grammar that holds from the end of the reasoning on."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kvflow_jax.grammar.lark import ANY_TEXT, LarkWriter
from kvflow_jax.reasoning.syntax import ReasoningMarkup

_ANSWER = "answer"
# Models write one or two line ends between their reasoning and their answer.
_GAP = r"/\n{0,2}/"


def behind_reasoning(grammar: str, markup: ReasoningMarkup, special_ids: Mapping[str, int]) -> str:
    """Return a grammar of outputs that reason, if they do, and then follow ``grammar``.

    Args:
        grammar: as llguidance takes it: a text in Lark, or a JSON list of grammars, of which the
            first is the start.
        special_ids: those tags that are special tokens, with their ids.
    """
    lark = LarkWriter(special_ids)
    begin, end = (lark.text(tag) for tag in markup.tags)
    if lark.is_special(markup.end):
        reasoning = f"{lark.rule(ANY_TEXT)} {end}"
    else:
        reasoning = lark.rule(f"{ANY_TEXT} {end}", "[lazy]")
    behind = f"{reasoning} {lark.rule(_GAP)} @{_ANSWER}"
    start = f"({begin})? {behind}" if markup.is_open else f"{begin} {behind} | @{_ANSWER}"
    is_list = grammar.lstrip().startswith("{")  # as llguidance tells them apart
    first, *others = json.loads(grammar)["grammars"] if is_list else [{"lark_grammar": grammar}]
    grammars = [{"lark_grammar": lark.write(start)}, {**first, "name": _ANSWER}, *others]
    return json.dumps({"grammars": grammars})
