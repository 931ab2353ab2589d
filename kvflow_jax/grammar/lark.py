"""Grammars in llguidance's dialect of Lark, written rule by rule.

Source of the dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import MAX_GRAMMAR_CHARS, StructuredOutputsParams

# White space of JSON as llama.cpp allows it: without a bound, small models never stop indenting.
WHITESPACE = r" |\n{1,2}[ \t]{0,20}"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_TEXT = r"/(?s:.*)/"

_IS_LARK = re.compile(r"^[ \t]*(?:%llguidance\b|[?!]?start[ \t]*:(?!:=))", re.MULTILINE)


class LarkWriter:
    """Collects the rules of one grammar. Methods return expressions for the bodies of rules.

    Args:
        special_ids: texts that are special tokens of the tokenizer, with their ids. The model
            writes them as one token, which literals do not match.
    """

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._special_ids = special_ids
        self._split = re.compile("|".join(f"({re.escape(text)})" for text in special_ids) or "(?!)")
        self._rules: list[str] = []
        self._num_chars = 0

    def rule(self, body: str, options: str = "") -> str:
        """Add a rule and return its name; ``options`` are such as ``[lazy]``.

        Raises:
            InvalidRequestError: the grammar is longer than grammars may be. It is written no
                further: each parameter of a tool repeats the tool's definitions.
        """
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        self._num_chars += len(self._rules[-1])
        if self._num_chars > MAX_GRAMMAR_CHARS:
            raise InvalidRequestError(
                f"the grammar of calls of the tools has more than {MAX_GRAMMAR_CHARS} characters; "
                "send fewer tools, or smaller schemas",
                "tools",
            )
        return name

    def is_special(self, text: str) -> bool:
        return text in self._special_ids

    def text(self, text: str) -> str:
        """Return what matches a text, whose special tokens are tokens."""
        pieces = [piece for piece in self._split.split(text) if piece]
        return " ".join(
            f"<[{self._special_ids[piece]}]>" if self.is_special(piece) else json.dumps(piece)
            for piece in pieces
        )

    def json(self, schema: Mapping[str, Any], *, is_compact: bool = False) -> str:
        """Return what matches the values of a JSON Schema.

        Args:
            is_compact: on one line, as ``json.dumps`` writes it. Two values that begin with the
                same characters, as alternatives, must both be compact or both not.
        """
        options = _COMPACT if is_compact else {"whitespace_pattern": WHITESPACE}
        return f"%json {json.dumps({**schema, 'x-guidance': options})}"

    def structured(self, spec: StructuredOutputsParams) -> str:
        """Return what matches the output that a caller asks for.

        Raises:
            InvalidRequestError: its grammar is GBNF, which cannot be part of another grammar.
        """
        if spec.json is not None:
            return self.json(json.loads(str(spec.json)))
        if spec.regex is not None:
            return regex_terminal(spec.regex)
        if spec.choice is not None:
            return f"({' | '.join(json.dumps(text) for text in spec.choice)})"
        if spec.grammar is not None:
            if not is_lark(spec.grammar):
                raise spec.error(
                    f"{spec.param} is GBNF, which does not go together with tools; send it as Lark"
                )
            return f"%lark {{\n{spec.grammar}\n}}"
        return self.json({"type": "object"})

    def write(self, start: str) -> str:
        """Return the grammar whose outputs match the expression ``start``."""
        return "\n".join([f"start: {start}", *self._rules])


def is_lark(grammar: str) -> bool:
    """True if a grammar is Lark, False if it is GBNF."""
    return _IS_LARK.search(grammar) is not None


def regex_terminal(regex: str) -> str:
    """Return a regular expression between slashes, those within it escaped."""
    return "/" + re.sub(r"\\.|/", lambda m: r"\/" if m[0] == "/" else m[0], regex, flags=re.S) + "/"
