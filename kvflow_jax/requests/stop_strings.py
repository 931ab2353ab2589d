"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from kvflow_jax.tools.call_markup import CallMarkup, MarkupSplitter


class StopStrings:
    """Passes text through up to the first stop string, however the text is split.

    The stop string that is complete first ends the text. Text that may be the beginning of a stop
    string is pending until more text decides.

    Args:
        stops: strings that are not empty.
        include_stop: pass the stop string through, too.
        hidden: the stop strings that are special tokens and left out of the text, by token id.
    """

    def __init__(
        self,
        stops: Sequence[str],
        *,
        include_stop: bool = False,
        hidden: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self._hidden = dict(hidden)
        self._stops = tuple(stops)
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._include_stop = include_stop
        self._pending = ""

    def hidden_stop(self, token: int) -> tuple[str, str] | None:
        """Return the text to pass on and the stop string of a hidden token; None for any other."""
        stop = self._hidden.get(token)
        return None if stop is None else (stop if self._include_stop else "", stop)

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add text; return the text to pass on, and the stop string that ends it, if any.

        Args:
            may_stop: a stop string that ends in ``text`` counts. One that only begins in it counts
                in either case.
        """
        if not self._pending and self._first_chars.isdisjoint(text):
            return text, None
        pending = self._pending + text
        # ``_pending`` contained no stop string that counted: search for those that end after it.
        min_end = len(self._pending) + 1
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if may_stop and (start := pending.find(stop, max(0, min_end - len(stop)))) >= 0
        ]
        if matches:
            end, start, stop = min(matches)
            self._pending = ""
            return pending[:end] if self._include_stop else pending[:start], stop
        num_pending = max(_overlap(pending, stop) for stop in self._stops)
        cut = len(pending) - num_pending
        self._pending = pending[cut:]
        return pending[:cut], None

    def flush(self) -> str:
        """Return the pending text at the end of a text without a stop string."""
        pending, self._pending = self._pending, ""
        return pending


class StopStringsOutsideCalls(StopStrings):
    """Stop strings that the markup of tool calls may contain: only text outside of calls stops.

    Text that may be the beginning of a call is pending, too.
    """

    def __init__(
        self,
        stops: Sequence[str],
        markup: CallMarkup,
        *,
        include_stop: bool = False,
        hidden: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(stops, include_stop=include_stop, hidden=hidden)
        self._splitter = MarkupSplitter(markup)

    def hidden_stop(self, token: int) -> tuple[str, str] | None:
        return None if self._splitter.is_in_markup else super().hidden_stop(token)

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        return self._push(self._splitter.push(text), may_stop)

    def flush(self) -> str:
        text, stop = self._push(self._splitter.flush(), may_stop=True)
        return text if stop is not None else text + super().flush()

    def _push(self, pieces: Iterable[tuple[str, bool]], may_stop: bool) -> tuple[str, str | None]:
        passed = ""
        for piece, is_markup in pieces:
            if is_markup:
                passed += super().flush() + piece
                continue
            text, stop = super().push(piece, may_stop=may_stop)
            passed += text
            if stop is not None:
                return passed, stop
        return passed, None


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
