"""Responses of a generation: one JSON object, or server-sent events (SSE)."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.errors import ApiError, ClientDisconnectedError, to_api_error
from kvflow_jax.serve.generation import ChoiceDelta, Generation, Usage
from kvflow_jax.serve.large_answer import RunInThread, is_large, json_response, write_answer
from kvflow_jax.serve.large_json import dump

logger = logging.getLogger("kvflow_jax.serve")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip
KEEP_ALIVE_S = 15.0
HINT_STATUS = "X-KVFlow-Hint-Status"


class Format(Protocol):
    """The response format of a route; one instance per request."""

    def first_chunk(self, delta: ChoiceDelta) -> dict[str, Any] | None:
        """Return the chunk that opens a choice before its first delta; None if there is none."""
        ...

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """Return the chunks of a delta: at least one if it is the last, maybe none before."""
        ...

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]: ...

    def full(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the response of a request that does not stream."""
        ...


class StreamWriter(Protocol):
    """Writes a generation as the server-sent events of a route; one instance per request."""

    def keep_alive(self) -> bytes:
        """Return an event or comment that says nothing, sent while the first token is awaited."""
        ...

    def write(self, batch: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        """Return the events of new output, possibly none; ``usage`` counts finished choices."""
        ...

    def end(self, usage: Usage) -> bytes:
        """Return the last events of a generation that has ended."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """Return the last events of a generation that has failed."""
        ...


class ChunkWriter:
    """The chunks of ``/v1/chat/completions`` and ``/v1/completions``, and ``[DONE]``.

    Args:
        include_usage: whether a last chunk has the usage.
        continuous_usage: whether every chunk has the usage of its choice so far.
        every_token: whether tokens without text have a chunk too, for their ids.
    """

    def __init__(
        self,
        response_format: Format,
        num_choices: int,
        *,
        include_usage: bool,
        continuous_usage: bool = False,
        every_token: bool = False,
    ) -> None:
        self._format = response_format
        self._include_usage = include_usage
        self._continuous_usage = include_usage and continuous_usage
        self._every_token = every_token
        self._num_prompt: dict[int, int] = {}  # tokens, by index of each choice that has begun
        self._num_output: Counter[int] = Counter()  # tokens, by index of the choice
        self._num_unfinished = num_choices

    def keep_alive(self) -> bytes:
        return KEEP_ALIVE

    def write(self, batch: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        events = bytearray()
        for delta in batch:
            if delta.index not in self._num_prompt:
                prompt_ids = delta.prompt_ids
                self._num_prompt[delta.index] = 0 if prompt_ids is None else len(prompt_ids)
                first = self._format.first_chunk(delta)
                events += b"" if first is None else self._events([first], delta.index)
            self._num_output[delta.index] += len(delta.token_ids)
            if delta.needs_chunk or (self._every_token and delta.token_ids):
                chunks = self._format.chunks(delta)
                self._num_unfinished -= delta.finish_reason is not None
                if not self._include_usage and not self._num_unfinished:
                    chunks[-1]["kvflow"] = kvflow_body(usage)
                events += self._events(chunks, delta.index, in_slices=is_large([delta]))
        return bytes(events)

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        chunk = self._format.usage_chunk(usage_body(usage))
        return sse_event({**chunk, "kvflow": kvflow_body(usage)}) + DONE

    def failure(self, error: ApiError) -> bytes:
        return sse_event(error.body) + DONE

    def _events(
        self, chunks: Sequence[dict[str, Any]], index: int, *, in_slices: bool = False
    ) -> bytes:
        """Return chunks of one choice as events."""
        if self._include_usage:
            num_prompt, num_output = self._num_prompt[index], self._num_output[index]
            so_far = token_counts(num_prompt, num_output) if self._continuous_usage else None
            for chunk in chunks:
                chunk["usage"] = so_far  # null, as from OpenAI, or vLLM's counts
        return b"".join(sse_event(chunk, in_slices=in_slices) for chunk in chunks)


async def collect(generation: Generation, receive: Receive) -> list[ChoiceDelta]:
    """Return the complete choices; a client that disconnects aborts the generation.

    Raises:
        ApiError, ClientDisconnectedError.
    """
    choices = [ChoiceDelta(index) for index in range(generation.num_choices)]
    async with generation.abort_on_disconnect(receive):
        async for batch in generation.deltas():
            for delta in batch:
                choices[delta.index].add(delta)
    return choices


async def full_response(
    generation: Generation, response_format: Format, receive: Receive, run: RunInThread
) -> Response:
    """Return the complete response. Raises the errors of ``collect``.

    Args:
        run: runs what a large answer needs.
    """
    choices = await collect(generation, receive)

    usage = generation.usage

    def write() -> dict[str, Any]:
        answer = response_format.full(choices, usage_body(usage))
        return {**answer, "kvflow": kvflow_body(usage)}

    return await json_response(choices, write, hint_headers(usage), run)


class EventStream(Response):
    """The server-sent events of a generation.

    Sends nothing before the first delta, so that an early error keeps its HTTP status; a later
    error becomes an ``error`` event. A client that disconnects aborts the generation. While the
    first delta takes longer than ``KEEP_ALIVE_S``, clients and proxies with an idle timeout are
    sent a keep-alive each time; the status is 200 from then on, and no header tells the outcome of
    the hints.

    Args:
        run: runs what a large part of the answer needs.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, writer: StreamWriter, run: RunInThread) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._writer, self._run = writer, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        async with self._generation.abort_on_disconnect(receive):
            try:
                async for events in self._events():
                    if not has_started:
                        await send(self._start())
                        has_started = True
                    await send(_body(events, more=True))
                await send(_body(self._writer.end(self._generation.usage), more=False))
            except ClientDisconnectedError:
                return
            except Exception as error:
                if not has_started:
                    raise  # to the error handlers of the app
                failure = to_api_error(error)
                # An unexpected error reveals no detail to the client; log it.
                if failure is not error:
                    logger.exception("a stream failed")
                await send(_body(self._writer.failure(failure), more=False))

    async def _events(self) -> AsyncIterator[bytes]:
        async for batch in _with_keep_alive(self._generation.deltas(), KEEP_ALIVE_S):
            if batch is None:
                yield self._writer.keep_alive()
            elif events := await self._write(batch):
                yield events

    async def _write(self, batch: list[ChoiceDelta]) -> bytes:
        write = partial(self._writer.write, batch, self._generation.usage)
        return await write_answer(batch, write, self._run)

    def _start(self) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": Headers({**self.headers, **hint_headers(self._generation.usage)}).raw,
        }


async def _with_keep_alive(
    batches: AsyncIterator[list[ChoiceDelta]], interval_s: float
) -> AsyncIterator[list[ChoiceDelta] | None]:
    """Yield the batches, and None each time that ``interval_s`` pass before the first."""
    # A task, because a time-out that cancels the iterator would end it.
    first = asyncio.ensure_future(anext(batches))
    try:
        while not (await asyncio.wait({first}, timeout=interval_s))[0]:
            yield None
        yield first.result()
    finally:
        first.cancel()
    async for batch in batches:
        yield batch


def new_id(prefix: str) -> str:
    """Return a unique id of an answer or a part of one, such as ``resp_0f3...``."""
    return f"{prefix}_{uuid.uuid4().hex}"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's ``usage``; its details are always present, 0 rather than null."""
    return {
        **token_counts(usage.prompt_tokens, usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def token_counts(num_prompt: int, num_output: int) -> dict[str, Any]:
    """Return the fields of OpenAI's ``usage`` that are known at any time."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
    }


def kvflow_body(usage: Usage) -> dict[str, Any]:
    """Return what ``usage`` has no field for: cached tokens by tier, hints, edits."""
    body: dict[str, Any] = {
        "cached_tokens_details": {
            "device": usage.cached_tokens - usage.host_tokens,
            "host": usage.host_tokens,
        },
        "hint_status": None if usage.hint_status is None else usage.hint_status.value,
    }
    if usage.prompt_edits:
        body["prompt_edits"] = sorted(edit.value for edit in usage.prompt_edits)
    return body


def hint_headers(usage: Usage) -> dict[str, str]:
    """Return the header with the outcome of the hints, for clients that hide the body."""
    return {} if usage.hint_status is None else {HINT_STATUS: usage.hint_status.value}


def finish_name(reason: FinishReason | None) -> str | None:
    return None if reason is None else reason.value


def sse_event(
    body: Mapping[str, Any], name: str | None = None, *, in_slices: bool = False
) -> bytes:
    """Return one server-sent event, with its name where the route's events have one."""
    # json.dumps escapes to ASCII: many clients also split lines at U+2028 and U+0085, which JSON
    # may contain unescaped.
    if in_slices:
        text = dump(body, ensure_ascii=True)
    else:
        text = json.dumps(body, separators=(",", ":")).encode()
    data = b"data: %b\n\n" % text
    return data if name is None else b"event: %b\n%b" % (name.encode(), data)


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
