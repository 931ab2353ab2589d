"""Where in an output calls are, without an understanding of them: stop strings ask for this."""

from __future__ import annotations

from dataclasses import dataclass

from kvflow_jax.tools.text_source import Reading, TextSource


@dataclass(frozen=True, slots=True)
class CallMarkup:
    """The spans of an output in which a model writes calls.

    Attributes:
        spans: strings that begin and end a span; an empty end means the end of the output.
        first_char: an output whose first character, after white space, is this one is one span.
        tokens: other markers within a span, which are special tokens of some tokenizers.
    """

    spans: tuple[tuple[str, str], ...] = ()
    first_char: str = ""
    tokens: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers: those that are special tokens must be in the text that is parsed."""
        return tuple(dict.fromkeys([*(m for span in self.spans for m in span if m), *self.tokens]))


class MarkupSplitter:
    """Splits a text that arrives in pieces into what is markup of calls and what is not.

    Attributes:
        is_in_markup: the text so far ends within a call.
    """

    def __init__(self, markup: CallMarkup) -> None:
        self.is_in_markup = False
        self._ends = dict(markup.spans)
        self._first_char = markup.first_char
        self._source = TextSource()
        self._pieces: list[tuple[str, bool]] = []
        self._reading = self._read()
        next(self._reading)

    def push(self, text: str) -> list[tuple[str, bool]]:
        """Add text; return the pieces that are decided, each with whether it is markup.

        What may be the beginning of a marker is pending until more text decides.
        """
        self._source.add(text)
        next(self._reading)
        return self._drain()

    def flush(self) -> list[tuple[str, bool]]:
        """End the text and return what was pending."""
        self._source.end()
        for _ in self._reading:
            pass
        return self._drain()

    def _read(self) -> Reading[None]:
        source = self._source
        if self._first_char:
            source.mark()
            yield from source.skip_space()
            is_markup = (yield from source.peek()) == self._first_char
            self._emit(source.since_mark(), is_markup)
            self.is_in_markup = is_markup
            if is_markup:
                yield from source.pass_until((), self._emit_markup)
        while begin := (yield from source.pass_until(tuple(self._ends), self._emit_text)):
            self._emit(begin, True)
            self.is_in_markup = True
            end = self._ends[begin]
            self._emit(
                (yield from source.pass_until((end,) if end else (), self._emit_markup)), True
            )
            self.is_in_markup = False

    def _emit_text(self, text: str) -> None:
        self._emit(text, False)

    def _emit_markup(self, text: str) -> None:
        self._emit(text, True)

    def _emit(self, text: str, is_markup: bool) -> None:
        if text:
            self._pieces.append((text, is_markup))

    def _drain(self) -> list[tuple[str, bool]]:
        pieces, self._pieces = self._pieces, []
        return pieces
