"""Answering: one JSON object, or server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.errors import ClientGoneError, to_api_error
from kvflow_jax.serve.generation import ChoiceDelta, Generation, Usage

logger = logging.getLogger("kvflow_jax.serve")

DONE = b"data: [DONE]\n\n"


class Format(Protocol):
    """The shape of one route's answers; made per request."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """First chunk of a choice, before any text."""

    def chunk(self, news: ChoiceDelta) -> dict[str, Any]: ...

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]: ...

    def whole(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer of a request that does not stream."""


async def answer_whole(generation: Generation, form: Format, receive: Receive) -> Response:
    """Wait for the end, or for the client to leave, which stops generation.

    Raises:
        ApiError, ClientGoneError.
    """
    choices = [ChoiceDelta(index) for index in range(generation.num_choices)]
    async with generation.abort_on_disconnect(receive):
        async for batch in generation.news():
            for news in batch:
                choices[news.index].add(news)
    answer = form.whole(choices, usage_body(generation.usage))
    return JSONResponse({**answer, "kvflow": kvflow_body(generation.usage)})


class EventStream(Response):
    """Server-sent events of a generation.

    Nothing is sent before the first news, so that an early failure keeps its HTTP status; a later
    one becomes an ``error`` event. A client that leaves stops generation.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, form: Format, *, include_usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._form = form
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
            except ClientGoneError:
                return
            except Exception as error:
                if not has_started:
                    raise  # the app's error handlers answer
                failure = to_api_error(error)
                if failure is not error:
                    logger.exception("a stream failed")
                await send(_body(_event(failure.body) + DONE, more=False))

    async def _events(self) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        num_unfinished = self._generation.num_choices
        async for batch in self._generation.news():
            events = bytearray()
            for news in batch:
                if news.index not in opened:
                    opened.add(news.index)
                    events += self._optional(self._form.opening(news.index))
                if news.is_worth_a_chunk:
                    chunk = self._form.chunk(news)
                    num_unfinished -= news.finish_reason is not None
                    if self._include_usage:
                        chunk["usage"] = None  # as OpenAI has it
                    elif not num_unfinished:
                        chunk["kvflow"] = kvflow_body(self._generation.usage)
                    events += _event(chunk)
            if events:
                yield bytes(events)
        if self._include_usage:
            usage = self._generation.usage
            chunk = self._form.usage_chunk(usage_body(usage))
            yield _event({**chunk, "kvflow": kvflow_body(usage)})

    def _optional(self, chunk: dict[str, Any] | None) -> bytes:
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
    """OpenAI's ``usage``; ``cached_tokens`` is always there, 0 rather than null."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def kvflow_body(usage: Usage) -> dict[str, Any]:
    """What OpenAI's ``usage`` has no field for: where the cache was, and what hints came to."""
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
    # ASCII: many clients split lines at U+2028 and U+0085 too, which JSON may hold unescaped.
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":")).encode()


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
