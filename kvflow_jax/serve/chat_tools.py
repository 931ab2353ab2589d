"""The tools of one chat: in its prompt, in its history, and in its answers."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.call_grammar import CallGrammar
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.protocols import TextMarks, Tokenizer
from kvflow_jax.serve.stream import finish_name
from kvflow_jax.tools.call_events import CallEvent, TextDelta
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.call_parser import CallParser
from kvflow_jax.tools.prompt_form import (
    knows_tools,
    reads_tools_of_message,
    with_prompt_form,
)
from kvflow_jax.tools.syntaxes import find_syntax
from kvflow_jax.tools.syntaxes.base import CallLayout, CallSyntax
from kvflow_jax.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class ModelTools:
    """How the served model is told of tools, and how it calls them.

    Attributes:
        knows_tools: its chat template writes tools; others get them in the messages.
        has_tools_field: such a template reads the tools from a field of the system message.
        layout: of the calls that it writes.
        special_ids: markers of its call syntax that are special tokens, with their ids.
    """

    syntax: CallSyntax
    layout: CallLayout
    knows_tools: bool = False
    has_tools_field: bool = False
    special_ids: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, syntax_name: str) -> ModelTools:
        """Return what the model's tokenizer and chat template say.

        Args:
            syntax_name: of the call syntax, or "auto".
        """
        template = None if tokenizer is None else tokenizer.chat_template
        syntax = find_syntax(template, syntax_name)
        layout = syntax.layout_of(template)
        if tokenizer is None:
            return cls(syntax, layout)
        return cls(
            syntax,
            layout,
            knows_tools(template),
            reads_tools_of_message(template),
            tokenizer.special_token_ids(syntax.markup.markers),
        )


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call tools, or must.

    Attributes:
        allows_calls: False for ``none``: the prompt is the same, so that it shares the prefix of
            the other calls, and the answer is text.
        is_required: the answer is calls and nothing else.
        name: the only tool that may be called; None: any.
    """

    allows_calls: bool
    is_required: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatTools:
    """The tools that a client declares, and how the model may call them.

    Attributes:
        is_parallel: an answer may have several calls.
    """

    model: ModelTools
    tools: tuple[Tool, ...]
    choice: ToolChoice
    is_parallel: bool = True

    @property
    def allows_calls(self) -> bool:
        return self.choice.allows_calls

    @property
    def max_calls(self) -> int | None:
        """Of one answer; None: no limit."""
        return None if self.is_parallel and self.choice.name is None else 1

    @property
    def markup(self) -> CallMarkup | None:
        """Where calls are in an answer; None if it has none."""
        return self.model.syntax.markup if self.allows_calls else None

    def new_parser(self) -> CallParser:
        """Return a parser of one answer."""
        return CallParser(
            self.model.syntax,
            self.tools,
            max_calls=self.max_calls,
            hidden=tuple(self.model.special_ids),
        )

    def structured_outputs(
        self, answer: StructuredOutputsParams | None
    ) -> StructuredOutputsParams | None:
        """Return what an answer must match, calls included; None if it is free.

        Args:
            answer: what an answer without calls must match.

        Raises:
            InvalidRequestError: a tool's schema does not fit the call syntax, or ``answer`` does
                not go together with tools.
        """
        choice = self.choice
        if not choice.allows_calls:
            return answer
        tools = [tool for tool in self.tools if choice.name in (None, tool.name)]
        model = self.model
        grammar = CallGrammar(model.layout, model.special_ids, tools, self.max_calls == 1)
        if choice.is_required:
            return StructuredOutputsParams(grammar=grammar.calls(), param="tool_choice")
        if answer is not None:
            return StructuredOutputsParams(grammar=grammar.calls_or(answer), param=answer.param)
        if any(tool.is_strict for tool in tools):
            return StructuredOutputsParams(grammar=grammar.text_and_calls(), param="tools")
        return None

    def new_call_id(self) -> str:
        length = self.model.syntax.call_id_len
        return f"call_{uuid.uuid4().hex[:24]}" if length is None else uuid.uuid4().hex[:length]


class AnswerParser:
    """Turns the deltas of a chat's choices into text and calls, and names why they end."""

    def __init__(self, tools: ChatTools) -> None:
        self._tools = tools
        self._parsers: dict[int, CallParser] = {}  # by index of the choice

    def parse(self, delta: ChoiceDelta) -> tuple[list[CallEvent], str | None]:
        """Return what a delta completes, and the finish reason if it is the last of its choice."""
        finish = finish_name(delta.finish_reason)
        if not self._tools.allows_calls:
            return ([TextDelta(delta.text)] if delta.text else []), finish
        parser = self._parsers.get(delta.index)
        if parser is None:
            parser = self._parsers[delta.index] = self._tools.new_parser()
        events = parser.feed(delta.text)
        if finish is not None:
            events += parser.finish()
            # A call that max_tokens cut ends with that reason.
            if parser.has_calls and delta.finish_reason is FinishReason.STOP:
                finish = "tool_calls"
        if self._tools.choice.is_required:
            # The grammar has no text: this is the beginning of a call, cut before its name.
            events = [event for event in events if not isinstance(event, TextDelta)]
        return events, finish


def read_tool_choice(choice: Any, tools: Sequence[Tool]) -> ToolChoice:
    """Return how the model may call tools.

    Raises:
        InvalidRequestError: the choice is unknown, names no tool of the request, or needs one.
    """
    if choice is None or choice in ("auto", "none"):
        return ToolChoice(bool(tools) and choice != "none")
    name = _named(choice)
    if choice != "required" and name is None:
        raise InvalidRequestError(
            "tool_choice must be 'auto', 'none', 'required' or "
            f"{{'type': 'function', 'function': {{'name': ...}}}}, got {choice!r:.80}",
            param="tool_choice",
        )
    if not tools:
        raise InvalidRequestError("tool_choice needs tools", param="tool_choice")
    if name is not None and name not in {tool.name for tool in tools}:
        raise InvalidRequestError(
            f"tool_choice names {name!r:.140}, which is not among the tools", param="tool_choice"
        )
    return ToolChoice(allows_calls=True, is_required=True, name=name)


class ToolTemplate:
    """A tokenizer's chat template, with the tools of a chat.

    A template that knows tools gets their definitions. For others they are written into the
    messages; see ``tools.prompt_form``.

    Args:
        marks: keeps what clients send text, where it spells control tokens; None: does not.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: ChatTools, marks: TextMarks | None = None
    ) -> None:
        self._tokenizer, self._model = tokenizer, tools.model
        self._tools, self._marks = tools.tools, marks
        if marks is not None:
            self._tools = tuple(
                replace(tool, definition=marks.mark(tool.definition)) for tool in tools.tools
            )

    @property
    def definitions(self) -> list[Mapping[str, Any]]:
        """The tools, as the template gets them."""
        return [tool.definition for tool in self._tools]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **template_args: object,
    ) -> list[int]:
        """Return the prompt ids of a chat.

        Raises:
            InvalidRequestError: the template rejects the messages.
        """
        tools, model = self._tools, self._model
        # What is written into the messages from here on, such as markers of calls, is not marked.
        if self._marks is not None:
            messages = self._marks.mark_messages(messages)
            template_args = self._marks.mark(template_args)
        if not model.knows_tools:
            messages = with_prompt_form(
                messages, tools, model.syntax, as_field=model.has_tools_field
            )
            has_text_arguments = False
        else:
            if tools:
                template_args["tools"] = [tool.definition for tool in tools]
            if model.syntax.call_id_len is not None:
                messages = _with_short_ids(messages, model.syntax.call_id_len)
            has_text_arguments = any(map(_has_text_arguments, messages))

        def apply(messages: Sequence[Mapping[str, Any]]) -> list[int]:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, **template_args
            )

        try:
            return apply(messages)
        except InvalidRequestError:
            if not has_text_arguments:
                raise
        # Some templates, such as Qwen3-Coder's, write each argument by its name.
        return apply([_with_named_arguments(message) for message in messages])


def _named(choice: Any) -> str | None:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _has_text_arguments(message: Mapping[str, Any]) -> bool:
    calls = message.get("tool_calls") or ()
    return any(isinstance(call["function"]["arguments"], str) for call in calls)


def _with_named_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose arguments that are text are an object with this one field."""
    if not _has_text_arguments(message):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            call = {**call, "function": {**call["function"], "arguments": {"text": arguments}}}
        calls.append(call)
    return {**message, "tool_calls": calls}


def _with_short_ids(messages: Sequence[Mapping[str, Any]], length: int) -> list[Mapping[str, Any]]:
    """Return messages whose call ids are letters and digits of one length, other ids hashed."""

    def short(call_id: object) -> str:
        text = str(call_id)
        if re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", text):
            return text
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:length]

    read: list[Mapping[str, Any]] = []
    for message in messages:
        if "tool_call_id" in message:
            message = {**message, "tool_call_id": short(message["tool_call_id"])}
        if message.get("tool_calls"):
            calls = [{**call, "id": short(call.get("id"))} for call in message["tool_calls"]]
            message = {**message, "tool_calls": calls}
        read.append(message)
    return read
