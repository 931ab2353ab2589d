"""What sets a call syntax apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool

# Reads a whole output and writes its events. It may return early: what follows is text.
ReadOutput: TypeAlias = Callable[[TextSource, EventWriter, dict[str, Tool]], Reading[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call in a conversation's history. Arguments that are no JSON object are their text."""

    name: str
    arguments: dict[str, Any] | str


class CallForm(Enum):
    """How one call is written, without what stands around it."""

    ARGUMENTS = "arguments"  # {"name": ..., "arguments": {...}}
    PARAMETERS = "parameters"  # {"name": ..., "parameters": {...}}
    NAMED = "named"  # name[ARGS]{...}
    PYTHON = "python"  # name(parameter=value)
    TAGS = "tags"  # <function=name> and a tag for each parameter


@dataclass(frozen=True, slots=True)
class CallLayout:
    """How the calls of one output are written: what a grammar of calls is made of.

    Attributes:
        form: of one call.
        begin: the marker that begins calls; empty: an output has calls if it begins with one.
        open: text behind the marker.
        separator: text between two calls.
        close: text behind the last call.
        template_mark: a template without this text writes calls in another layout.
    """

    form: CallForm
    begin: str = ""
    open: str = ""
    separator: str = ""
    close: str = ""
    template_mark: str = ""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How models of some families write calls.

    Attributes:
        name: the value of ``--tool-call-parser``; vLLM's where its parser reads the same.
        families: models that were trained on it, for the documentation.
        template_marks: a chat template that has all strings of one of these groups writes calls
            in this syntax.
        read: reads an output.
        markup: where in an output calls are.
        layouts: how calls are written: the first whose mark the chat template has.
        form: how to write a call, told to a model whose template knows no tools.
        write_calls: returns the calls of one message as the model writes them.
        write_result: returns the result of a call, for a template that knows no tools.
        call_id_len: exact length of a call's id, for templates that check it.
    """

    name: str
    families: str
    template_marks: tuple[tuple[str, ...], ...]
    read: ReadOutput
    markup: CallMarkup
    layouts: tuple[CallLayout, ...]
    form: str
    write_calls: Callable[[Sequence[Call]], str]
    write_result: Callable[[str], str]
    call_id_len: int | None = None

    def layout_of(self, chat_template: str | None) -> CallLayout:
        """Return the layout of the calls of a model with this chat template."""
        marked = (one for one in self.layouts if one.template_mark in (chat_template or ""))
        return next(marked, self.layouts[-1])


def pass_text(source: TextSource, out: EventWriter, markers: Sequence[str]) -> Reading[str]:
    """Write text up to the first of ``markers``, set the source's mark before it and return it.

    Return "" at the end of the output. Other special tokens of the syntax are left out.
    """
    strays = [marker for marker in out.hidden if marker not in markers]
    while marker := (yield from source.pass_until([*markers, *strays], out.text)):
        if marker in markers:
            source.mark(len(marker))
            return marker
    return ""


def write_raw(source: TextSource, out: EventWriter) -> None:
    """Write the text since the mark, which is no call, as text."""
    out.raw(source.since_mark())
