"""Responses of a generation: one JSON object, or server-sent events (SSE)."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.errors import ClientDisconnectedError, to_api_error
from kvflow_jax.serve.generation import ChoiceDelta, Generation, Usage

logger = logging.getLogger("kvflow_jax.serve")

DONE = b"data: [DONE]\n\n"


class Format(Protocol):
    """The response format of a route; one instance per request."""

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that opens a choice, before any text; None if there is none."""
        ...

    def chunk(self, delta: ChoiceDelta) -> dict[str, Any]: ...

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]: ...

    def full(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the response of a request that does not stream."""
        ...


async def full_response(
    generation: Generation, response_format: Format, receive: Receive
) -> Response:
    """Return the complete response; a client that disconnects aborts the generation.

    Raises:
        ApiError, ClientDisconnectedError.
    """
    choices = [ChoiceDelta(index) for index in range(generation.num_choices)]
    async with generation.abort_on_disconnect(receive):
        async for batch in generation.deltas():
            for delta in batch:
                choices[delta.index].add(delta)
    answer = response_format.full(choices, usage_body(generation.usage))
    return JSONResponse({**answer, "kvflow": kvflow_body(generation.usage)})


class EventStream(Response):
    """The server-sent events of a generation.

    Sends nothing before the first delta, so that an early error keeps its HTTP status; a later
    error becomes an ``error`` event. A client that disconnects aborts the generation.
    """

    media_type = "text/event-stream"

    def __init__(
        self, generation: Generation, response_format: Format, *, include_usage: bool
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._format = response_format
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        async with self._generation.abort_on_disconnect(receive):
            try:
                async for events in self._events():
                    if not has_started:
                        await send(self._start())
                        has_started = True
                    await send(_body(events, more=True))
                await send(_body(DONE, more=False))
            except ClientDisconnectedError:
                return
            except Exception as error:
                if not has_started:
                    raise  # to the error handlers of the app
                failure = to_api_error(error)
                # An unexpected error reveals no detail to the client; log it.
                if failure is not error:
                    logger.exception("a stream failed")
                await send(_body(_event(failure.body) + DONE, more=False))

    async def _events(self) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        num_unfinished = self._generation.num_choices
        async for batch in self._generation.deltas():
            events = bytearray()
            for delta in batch:
                if delta.index not in opened:
                    opened.add(delta.index)
                    events += self._opening_event(self._format.first_chunk(delta.index))
                if delta.needs_chunk:
                    chunk = self._format.chunk(delta)
                    num_unfinished -= delta.finish_reason is not None
                    if self._include_usage:
                        chunk["usage"] = None  # as OpenAI does
                    elif not num_unfinished:
                        chunk["kvflow"] = kvflow_body(self._generation.usage)
                    events += _event(chunk)
            if events:
                yield bytes(events)
        if self._include_usage:
            usage = self._generation.usage
            chunk = self._format.usage_chunk(usage_body(usage))
            yield _event({**chunk, "kvflow": kvflow_body(usage)})

    def _opening_event(self, chunk: dict[str, Any] | None) -> bytes:
        if chunk is None:
            return b""
        if self._include_usage:
            chunk["usage"] = None
        return _event(chunk)

    def _start(self) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's ``usage``; ``cached_tokens`` is always present, 0 rather than null."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def kvflow_body(usage: Usage) -> dict[str, Any]:
    """Return what ``usage`` has no field for: cached tokens by tier, and the outcome of hints."""
    return {
        "cached_tokens_details": {
            "device": usage.cached_tokens - usage.host_tokens,
            "host": usage.host_tokens,
        },
        "hint_status": None if usage.hint_status is None else usage.hint_status.value,
    }


def finish_name(reason: FinishReason | None) -> str | None:
    return None if reason is None else reason.value


def _event(body: dict[str, Any]) -> bytes:
    # json.dumps escapes to ASCII: many clients also split lines at U+2028 and U+0085, which JSON
    # may contain unescaped.
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":")).encode()


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
