"""The body of ``POST /v1/responses``, and the chat request that it is translated to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.serve.chat_messages import texts_of
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.json_types import JsonInt, TokenLimit
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.responses.input_items import read_input
from kvflow_jax.serve.responses.tools import ToolNames, read_tool_choice, read_tools
from kvflow_jax.serve.schemas import ChatRequest, check_supported
from kvflow_jax.serve.structured_outputs import read_response_format

LOGPROBS = "message.output_text.logprobs"
# Fields that are not declared and that a response repeats, a stream three times.
REPEATED_FIELDS = ("max_tool_calls", "metadata", "prompt_cache_key", "safety_identifier", "user")
MAX_REPEATED_CHARS = 1 << 20  # of all that a response repeats

# Unsupported fields that change the answer, each with its values that change nothing: what a
# stateless server lacks, and what an answer of this route has no place for.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "prompt": (False,),
    "n": (1,),
    "echo": (False,),
}
# Fields of the chat route that have another meaning here, or none.
_NOT_PASSED = frozenset(("messages", "stream_options", "prompt_logprobs"))


class ResponsesRequest(BaseModel):
    """Declares the fields that are translated; all others are read as the chat route does."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    input: str | list[Any] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: TokenLimit | None = None
    top_logprobs: JsonInt | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    previous_response_id: str | None = None

    def extra(self, name: str) -> Any:
        """Return a field that is not declared; None if it is absent."""
        return (self.model_extra or {}).get(name)

    def to_chat(self) -> tuple[ChatRequest, ToolNames]:
        """Return the chat request with the same prompt, and the names of its tools.

        Raises:
            ApiError, InvalidRequestError: a field is invalid or not supported, or a response would
                repeat too much.
        """
        self._check_supported()
        self._check_repeated()
        tools, names = read_tools(self.tools or [])
        fields = {k: v for k, v in (self.model_extra or {}).items() if k not in _NOT_PASSED}
        fields |= {
            "messages": read_input(self.instructions, self.input, names),
            "stream": self.stream,
            "reasoning": self.reasoning,
        }
        # Without them, the fields of the chat route count.
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        if (text_format := self._response_format()) is not None:
            fields["response_format"] = text_format
        if self.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        # Where all tools are skipped, so is the choice of one.
        if tools or not self.tools:
            fields |= {
                "tools": tools,
                "tool_choice": read_tool_choice(self.tool_choice, names),
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        return validate(fields, ChatRequest), names

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def _check_supported(self) -> None:
        if self.previous_response_id is not None:
            raise ApiError(
                400,
                f"the response '{self.previous_response_id}' is not stored: this server stores no "
                "responses; send the whole conversation as input",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        check_supported(self.model_extra or {}, _UNSUPPORTED)

    def _check_repeated(self) -> None:
        # Functions and instructions have limits of their own.
        tools = [tool for tool in self.tools or [] if tool.get("type") != "function"]
        extra = [self.extra(name) for name in REPEATED_FIELDS]
        repeated = [extra, self.text, self.reasoning, self.tool_choice, tools]
        num_chars = 0
        for text in texts_of(repeated):
            num_chars += len(text)
            if num_chars > MAX_REPEATED_CHARS:
                raise ApiError(
                    413,
                    f"the fields that a response repeats have more than {MAX_REPEATED_CHARS} "
                    "characters together",
                    code="body_too_complex",
                )

    def _response_format(self) -> StructuredOutputsParams | None:
        text_format = (self.text or {}).get("format")
        return None if text_format is None else read_response_format("text.format", text_format)
