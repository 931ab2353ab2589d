"""An incremental splitter of one output into its reasoning and its answer."""

from __future__ import annotations

from collections.abc import Collection

from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.tools.text_source import Reading, TextSource


class ReasoningSplitter:
    """Splits the text of one output, which arrives in pieces of any size.

    What it returns, once joined, is the same for every split, and none is taken back. Text that may
    be the beginning of a tag is pending until more text decides. White space around the reasoning,
    and line ends between it and the answer, belong to neither.

    Args:
        hidden: tags that are special tokens of the tokenizer; they are never text of the answer.

    Attributes:
        has_reasoning: reasoning has begun.
        is_in_answer: what follows is the answer.
    """

    def __init__(self, markup: ReasoningMarkup, *, hidden: Collection[str] = ()) -> None:
        self.has_reasoning = markup.is_open
        self.is_in_answer = False
        self._source = TextSource()
        self._is_dropped = markup.is_dropped
        self._reasoning = self._answer = ""  # since the last push
        self._space = ""  # of the reasoning; its last is no part of it
        self._reading = self._read(markup, tuple(hidden))
        next(self._reading)

    def push(self, text: str, *, is_last: bool = False) -> tuple[str, str]:
        """Add text; return what it adds to the reasoning and to the answer.

        Args:
            is_last: the output ends with it: what was pending is returned.
        """
        self._source.add(text)
        if is_last:
            self._source.end()
        next(self._reading, None)
        added = self._reasoning, self._answer
        self._reasoning = self._answer = ""
        return added

    def _read(self, markup: ReasoningMarkup, hidden: tuple[str, ...]) -> Reading[None]:
        source = self._source
        source.mark()
        yield from source.skip_space()
        has_begin = (yield from source.take(markup.begin)) != ""
        before = source.since_mark()
        if has_begin or markup.is_open:
            self.has_reasoning = True
            yield from source.skip_space()
            yield from source.pass_until((markup.end,), self._emit_reasoning)
            self.is_in_answer = True
            while (yield from source.take("\n")):
                pass
        else:
            self.is_in_answer = True
            self._emit_answer(before)
        while (yield from source.pass_until(hidden, self._emit_answer)):
            pass

    def _emit_reasoning(self, text: str) -> None:
        if self._is_dropped:
            return
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._reasoning += kept

    def _emit_answer(self, text: str) -> None:
        self._answer += text
