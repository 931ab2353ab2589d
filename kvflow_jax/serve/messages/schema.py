"""The bodies of ``/v1/messages``, and the chat request that they are translated to."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.serve.json_types import TokenLimit
from kvflow_jax.serve.messages.content_blocks import read_messages
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.schemas import ChatRequest, check_supported
from kvflow_jax.serve.structured_outputs import read_response_format

logger = logging.getLogger("kvflow_jax.serve")

# Fields of the chat route that have another meaning here, or none.
_NOT_PASSED = frozenset(
    ("max_completion_tokens", "stream_options", "logprobs", "top_logprobs", "prompt_logprobs")
)
# Fields of the chat route that an answer has no place for, each with its values that change
# nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {"n": (1,), "echo": (False,)}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CountTokensRequest(BaseModel):
    """Body of ``POST /v1/messages/count_tokens``.

    Declares the fields that are translated; all others are read as the chat route does.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], FailFast()] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    max_tokens: TokenLimit | None = None

    def to_chat(self) -> ChatRequest:
        """Return the chat request with the same prompt.

        Raises:
            ApiError, InvalidRequestError: a field is invalid or not supported.
        """
        extra = self.model_extra or {}
        check_supported(extra, _UNSUPPORTED)
        fields = {k: v for k, v in extra.items() if k not in _NOT_PASSED}
        messages = read_messages(self.system, self.messages)
        output_config = self.output_config or {}
        own = {
            "stop": self.stop_sequences,
            "reasoning_effort": output_config.get("effort"),
            "response_format": self._response_format(),
        }
        # Without them, the fields of the chat route count.
        fields |= {name: value for name, value in own.items() if value is not None}
        fields |= {
            "messages": messages,
            "stream": self.stream,
            "max_tokens": self.max_tokens,
            "thinking": self.thinking,
            # A last message of the assistant is continued.
            "continue_final_message": messages[-1]["role"] == "assistant",
        }
        fields["tools"] = tools = _read_tools(self.tools or [])
        # Where all tools are skipped, so is the choice of one.
        if tools or not self.tools:
            fields |= _read_tool_choice(self.tool_choice)
        return validate(fields, ChatRequest)

    def _response_format(self) -> StructuredOutputsParams | None:
        name, data = "output_config.format", (self.output_config or {}).get("format")
        if data is None:
            name, data = "output_format", self.output_format
        if data is None:
            return None
        if not isinstance(data, dict) or data.get("type") != "json_schema":
            raise InvalidRequestError(
                f'{name} must be {{"type": "json_schema", "schema": {{...}}}}', name
            )
        return read_response_format(name, data)


class MessagesRequest(CountTokensRequest):
    """Body of ``POST /v1/messages``."""

    max_tokens: TokenLimit


def _read_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the client's tools as tools of the chat route.

    Tools of Anthropic's own, whose type names a version of them, are skipped with one line in the
    log: they run on its servers, or have a schema that only its models know.

    Raises:
        InvalidRequestError: names the invalid tool.
    """
    read, skipped = [], set()
    for i, tool in enumerate(tools):
        kind, name = tool.get("type"), tool.get("name")
        if kind == "function":  # OpenAI's, which Anthropic refuses, too
            raise InvalidRequestError(
                f"tools[{i}].type must be 'custom' or left out; a tool is "
                '{"name": ..., "input_schema": {...}}',
                f"tools[{i}].type",
            )
        if kind not in (None, "custom"):
            skipped.add(str(kind))
            continue
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"tools[{i}].name must be a string", f"tools[{i}].name")
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise InvalidRequestError(
                f"tools[{i}].input_schema must be an object", f"tools[{i}].input_schema"
            )
        function = {"name": name, "parameters": schema}
        function |= {k: tool[k] for k in ("description", "strict") if tool.get(k) is not None}
        read.append({"type": "function", "function": function})
    if skipped:
        logger.info("skipped Anthropic's own tools: %s", ", ".join(sorted(skipped))[:200])
    return read


def _read_tool_choice(choice: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``tool_choice`` and ``parallel_tool_calls`` of the chat route."""
    if choice is None:
        return {}
    kind, name = choice.get("type"), choice.get("name")
    is_serial = choice.get("disable_parallel_tool_use")
    is_parallel = not is_serial if isinstance(is_serial, bool) else None
    read: Any = _TOOL_CHOICES.get(kind) if isinstance(kind, str) else None
    if kind == "tool" and isinstance(name, str):
        read = {"type": "function", "function": {"name": name}}
    if read is None:
        raise InvalidRequestError(
            'tool_choice must be {"type": "auto"}, any, none, or {"type": "tool", "name": "..."}',
            param="tool_choice",
        )
    return {"tool_choice": read, "parallel_tool_calls": is_parallel}
