"""The response object of ``/v1/responses``: what it echoes of a request, and its usage."""

from __future__ import annotations

import time
from typing import Any

from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.generation import Usage
from kvflow_jax.serve.responses.schema import ResponsesRequest
from kvflow_jax.serve.stream import kvflow_body, new_id


class ResponseObject:
    """The response object, in each of its states.

    Attributes:
        id: by which the caller may abort it.
        output: its items, in order; the caller adds them.
    """

    def __init__(self, model_name: str, body: ResponsesRequest, params: SamplingParams) -> None:
        self.id = new_id("resp")
        self.output: list[dict[str, Any]] = []
        reasoning, text = body.reasoning or {}, body.text or {}
        self._fields: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.extra("max_tool_calls"),
            "metadata": body.extra("metadata") or {},
            "model": model_name,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.extra("prompt_cache_key"),
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": body.extra("safety_identifier"),
            "service_tier": "default",
            # Nothing is stored, whatever the request asks for.
            "store": False,
            "text": {**text, "format": _echo_format(text.get("format") or {"type": "text"})},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_echo_tool(tool) for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "truncation": "disabled",
            "user": body.extra("user"),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
        }

    def in_progress(self) -> dict[str, Any]:
        return {**self._fields, "output": [], "usage": None}

    def ended(self, usage: Usage, *, is_cut: bool) -> dict[str, Any]:
        """Return the response completed, or incomplete if the token limit cut it."""
        return {
            **self._fields,
            "status": "incomplete" if is_cut else "completed",
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self.output,
            "usage": _usage(usage),
            "kvflow": kvflow_body(usage),
        }

    def failed(self, error: ApiError) -> dict[str, Any]:
        return {
            **self._fields,
            "status": "failed",
            "error": {"code": error.code or "server_error", "message": error.message},
            "output": self.output,
            "usage": None,
        }


def _echo_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with the fields of a function that are required in answers, null if unsent."""
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _echo_format(text_format: dict[str, Any]) -> dict[str, Any]:
    """Return ``text.format`` with the fields that are required in answers."""
    if text_format.get("type") != "json_schema":
        return text_format
    return {"description": None, "strict": False, **text_format}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
