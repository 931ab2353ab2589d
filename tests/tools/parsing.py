"""Outputs with calls, parsed in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, CallEvent, TextDelta
from kvflow_jax.tools.call_parser import CallParser
from kvflow_jax.tools.syntaxes.base import CallSyntax
from kvflow_jax.tools.tool import Tool, read_tools


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """Return a declaration as a client sends it."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = read_tools(
    [tool("get_weather", city={"type": "string"}, days={"type": "integer"}), tool("f"), tool("ask")]
)


@dataclass
class Parsed:
    """The joined events of an output: its text, and the name and arguments of each call."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, events: Iterable[CallEvent]) -> None:
        for event in events:
            if isinstance(event, TextDelta):
                assert event.text
                self.text += event.text
            elif isinstance(event, CallBegin):
                assert event.index == len(self.calls)
                self.calls.append([event.name, ""])
            elif isinstance(event, ArgumentsDelta):
                assert event.text
                assert event.index == len(self.calls) - 1
                self.calls[-1][1] += event.text

    @property
    def values(self) -> list[tuple[str, Any]]:
        """The calls, with their arguments parsed."""
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def parse(
    syntax: CallSyntax, pieces: str | Sequence[str], tools: Sequence[Tool] = TOOLS, **options: Any
) -> Parsed:
    parser, parsed = CallParser(syntax, tools, **options), Parsed()
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        parsed.add(parser.feed(piece))
    parsed.add(parser.finish())
    assert parser.has_calls == bool(parsed.calls)
    return parsed
