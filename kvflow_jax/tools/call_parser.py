"""An incremental parser of the calls in one output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvflow_jax.tools.call_events import CallEvent, EventWriter
from kvflow_jax.tools.syntaxes.base import CallSyntax
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool


class CallParser:
    """Turns the text of one output, in pieces of any size, into text and calls.

    Its events, once joined, are the same for every split, and none is taken back. Text that may be
    the beginning of a call is pending only as long as it may be.

    Args:
        tools: the tools of the request.
        max_calls: further calls are dropped; None: no limit.
        hidden: markers that are special tokens of the tokenizer; they are never text.
    """

    def __init__(
        self,
        syntax: CallSyntax,
        tools: Sequence[Tool],
        *,
        max_calls: int | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._source = TextSource()
        self._out = EventWriter(max_calls, hidden)
        self._reading = self._read(syntax, {tool.name: tool for tool in tools})
        next(self._reading)

    @property
    def has_calls(self) -> bool:
        return self._out.num_calls > 0

    def feed(self, text: str) -> list[CallEvent]:
        """Add text and return the events that it completes."""
        self._source.add(text)
        next(self._reading)
        return self._out.drain()

    def finish(self) -> list[CallEvent]:
        """End the output and return the last events. A call that was cut stays cut."""
        self._source.end()
        for _ in self._reading:
            pass
        self._out.finish()
        return self._out.drain()

    def _read(self, syntax: CallSyntax, tools: dict[str, Tool]) -> Reading[None]:
        yield from syntax.read(self._source, self._out, tools)
        strays = self._out.hidden
        while (yield from self._source.pass_until(strays, self._out.text)):
            pass
