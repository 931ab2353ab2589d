"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, whatever the pieces it comes in.

    Of several the one that is complete first ends the text. Text that may turn out to be the
    beginning of a stop string waits for what follows.

    Args:
        stops: none of them empty.
        is_kept: whether the stop string itself is let through.
    """

    def __init__(self, stops: Sequence[str], *, is_kept: bool = False) -> None:
        self._stops = tuple(stops)
        self._is_kept = is_kept
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Text that may go out, and the stop string that ends it, if one has come.

        Args:
            may_stop: whether a stop string that this text completes counts. One that it begins
                does either way.
        """
        held = self._held + text
        # What was held was no stop string, or none that counted: only new ends are looked for.
        first = len(self._held) + 1
        ends = [
            (at + len(stop), at, stop)
            for stop in self._stops
            if may_stop and (at := held.find(stop, max(0, first - len(stop)))) >= 0
        ]
        if ends:
            _, at, stop = min(ends)
            self._held = ""
            return held[: at + len(stop)] if self._is_kept else held[:at], stop
        num_held = max(_overlap(held, stop) for stop in self._stops)
        cut = len(held) - num_held
        self._held = held[cut:]
        return held[:cut], None

    def flush(self) -> str:
        """What was waiting, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``, the whole of it not counted."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
