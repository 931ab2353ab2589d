"""What a call parser finds in an output: text, and calls whose arguments arrive in pieces."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The begin of call ``index`` (0, 1, ...): its name is known, its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


CallEvent = TextDelta | CallBegin | ArgumentsDelta


class EventWriter:
    """Collects the events of one output and merges neighbours. No event is ever taken back.

    White space before and between calls is no text: it is pending until text follows it.

    Args:
        max_calls: further calls are dropped; None: no limit.
        hidden: markers that are special tokens; they are never text.
    """

    def __init__(self, max_calls: int | None = None, hidden: Collection[str] = ()) -> None:
        self.hidden = tuple(hidden)
        self.num_calls = 0  # calls begun, dropped ones included
        self.is_in_call = False  # a call has begun and not ended; its markup may be broken
        self._max_calls = max_calls
        self._events: list[CallEvent] = []
        self._space = ""
        self._is_at_edge = True  # no text yet, or none since the last call
        self._has_arguments = False

    def text(self, text: str) -> None:
        if self._is_at_edge:
            text = self._space + text
            self._is_at_edge = not text or text.isspace()
            self._space = text if self._is_at_edge else ""
            if self._is_at_edge:
                return
        self._append_text(text)

    def raw(self, text: str) -> None:
        """Write markup that turned out to be no call as text."""
        for marker in self.hidden:
            text = text.replace(marker, "")
        self.text(text)

    def begin(self, name: str) -> None:
        self._space, self._is_at_edge, self._has_arguments = "", True, False
        self.num_calls += 1
        self.is_in_call = True
        if not self._is_dropped:
            self._events.append(CallBegin(self.num_calls - 1, name))

    def arguments(self, text: str) -> None:
        """Append to the arguments of the call begun last."""
        if not text:
            return
        self._has_arguments = True
        if self._is_dropped:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, ArgumentsDelta):
            self._events[-1] = ArgumentsDelta(last.index, last.text + text)
        else:
            self._events.append(ArgumentsDelta(self.num_calls - 1, text))

    def end(self) -> None:
        """End the call begun last; one without arguments gets an empty object."""
        if not self._has_arguments:
            self.arguments("{}")
        self.is_in_call = False

    def drain(self) -> list[CallEvent]:
        """Return the events since the last call of ``drain``."""
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """End the output. An output of white space alone is text."""
        if not self.num_calls and self._space:
            self._append_text(self._space)
        self._space = ""

    @property
    def _is_dropped(self) -> bool:
        return self._max_calls is not None and self.num_calls > self._max_calls

    def _append_text(self, text: str) -> None:
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, TextDelta):
            self._events[-1] = TextDelta(last.text + text)
        else:
            self._events.append(TextDelta(text))
