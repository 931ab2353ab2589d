"""Text that arrives in pieces, read by coroutines that wait where they need more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")

# A coroutine over a TextSource: it yields whenever it needs more text, and returns a result.
Reading: TypeAlias = Generator[None, None, Result]


class TextSource:
    """A text of unknown length. What a reader decides never depends on how the text is split."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0  # the next character to read
        self._mark: int | None = None
        self._is_ended = False

    def add(self, text: str) -> None:
        start = self._at if self._mark is None else self._mark
        self._text = self._text[start:] + text
        self._at -= start
        self._mark = None if self._mark is None else 0

    def end(self) -> None:
        """No text follows."""
        self._is_ended = True

    def mark(self, num_before: int = 0) -> None:
        """Keep the text from here on, or from ``num_before`` characters before."""
        self._mark = self._at - num_before

    def since_mark(self) -> str:
        """Return the text read since the mark, and remove the mark."""
        assert self._mark is not None
        text, self._mark = self._text[self._mark : self._at], None
        return text

    def unmark(self) -> None:
        """Remove the mark, if there is one."""
        self._mark = None

    def back(self, num_chars: int) -> None:
        """Read the last ``num_chars`` characters again; they must have been read in one call."""
        self._at -= num_chars

    def skip(self, num_chars: int) -> None:
        """Skip characters that ``available`` has returned."""
        self._at += num_chars

    def peek(self) -> Reading[str]:
        """Return the next character, "" at the end."""
        text = yield from self.available(1)
        return text

    def available(self, max_chars: int | None = None) -> Reading[str]:
        """Return what can be read now, at least one character; "" at the end."""
        while self._at == len(self._text):
            if self._is_ended:
                return ""
            yield
        return self._text[self._at : None if max_chars is None else self._at + max_chars]

    def skip_space(self) -> Reading[None]:
        while (char := (yield from self.peek())) and char.isspace():
            self._at += 1

    def take(self, *literals: str) -> Reading[str]:
        """Read the first of ``literals`` that comes next and return it; "" if none does."""
        for literal in literals:
            while literal.startswith(self._text[self._at : self._at + len(literal)]):
                if len(self._text) - self._at >= len(literal):
                    self._at += len(literal)
                    return literal
                if self._is_ended:
                    break
                yield
        return ""

    def take_while(self, accepts: Callable[[str], bool], max_chars: int) -> Reading[str]:
        """Read characters while they are accepted, at most ``max_chars``."""
        taken = ""
        while len(taken) < max_chars and (char := (yield from self.peek())) and accepts(char):
            taken += char
            self._at += 1
        return taken

    def pass_until(
        self, markers: Sequence[str], emit: Callable[[str], None], *, drops_cut_marker: bool = False
    ) -> Reading[str]:
        """Emit the text up to the first of ``markers``, read it and return it; "" at the end.

        Text that may be the beginning of a marker is pending until more text decides. No marker
        may be part of another.

        Args:
            drops_cut_marker: such text at the end is a marker that was cut, and is not emitted.
        """
        while True:
            found = [(at, m) for m in markers if (at := self._text.find(m, self._at)) >= 0]
            if found:
                at, marker = min(found)
                emit(self._text[self._at : at])
                self._at = at + len(marker)
                return marker
            end = len(self._text)
            if drops_cut_marker or not self._is_ended:
                end -= max((self._overlap(marker) for marker in markers), default=0)
            emit(self._text[self._at : end])
            self._at = end if not self._is_ended else len(self._text)
            if self._is_ended:
                return ""
            yield

    def _overlap(self, marker: str) -> int:
        """Return the length of the longest unread suffix that is a proper prefix of a marker."""
        start = max(self._at, len(self._text) - len(marker) + 1)
        # For every token of an output: most have not even the first character.
        while (start := self._text.find(marker[0], start)) >= 0:
            if marker.startswith(self._text[start:]):
                return len(self._text) - start
            start += 1
        return 0


def discard(text: str) -> None:
    """Emit nothing."""
