"""From the engine's thread to the server's loop, many outputs a wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from starlette.types import Receive

from kvflow_jax.requests.outputs import FinishReason, Output, TokenLogprobs
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.errors import ApiError, ClientGoneError, to_api_error
from kvflow_jax.serve.protocols import Engine
from kvflow_jax.workflow.hints import Hints, HintStatus


class Mailbox:
    """Hands outputs of the engine's thread to the loop. One loop wake-up delivers all that wait.

    ``post`` is for the engine's thread and never blocks; everything else runs on the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[Generation, int, Output]] = deque()
        self._is_armed = False

    def post(self, generation: Generation, index: int, output: Output) -> None:
        # Append, then look at the flag; _deliver clears the flag, then looks at the pending. In
        # that order a letter either is seen by the wake-up under way or arms the next one.
        self._letters.append((generation, index, output))
        if self._is_armed:
            return
        self._is_armed = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The server has stopped: no reader is left, and the engine must go on to its end.

    def _deliver(self) -> None:
        self._is_armed = False
        for _ in range(len(self._letters)):  # later pending have armed a wake-up of their own
            generation, index, output = self._letters.popleft()
            generation.receive(index, output)


@dataclass(slots=True)
class ChoiceDelta:
    """What one prompt has said since the last wake-up, merged."""

    index: int
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def is_worth_a_chunk(self) -> bool:
        """A token whose text is still held back says nothing by itself."""
        says = self.text or self.logprobs or self.prompt_logprobs
        return bool(says) or self.finish_reason is not None

    def add(self, output: Output | ChoiceDelta) -> None:
        """Append what came later."""
        self.text += output.text
        self.prompt_logprobs += output.prompt_logprobs
        self.logprobs += output.logprobs
        if isinstance(output, Output) and output.ends_at_token:
            self.logprobs = self.logprobs[:-1]  # the token that ends a text is no part of it
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


@dataclass(slots=True)
class Usage:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    host_tokens: int = 0  # of the cached ones, loaded from the host
    completion_tokens: int = 0
    hint_status: HintStatus | None = None


class Generation:
    """The running requests of one HTTP request, numbered in order: ``n`` for each prompt.

    Lives on the loop. Every path out of it must end in ``close``, which aborts what still runs.

    Args:
        engine: where prompts are submitted.
        mailbox: brings their outputs here.
        on_finished: called once with the last output of each request.
        on_closed: called once by ``close``.
        num_each: answers to each prompt.
    """

    def __init__(
        self,
        engine: Engine,
        mailbox: Mailbox,
        on_finished: Callable[[Output], None],
        on_closed: Callable[[Generation], None],
        num_each: int = 1,
    ) -> None:
        self.num_each = num_each
        self.usage = Usage()
        self._engine = engine
        self._mailbox = mailbox
        self._on_finished = on_finished
        self._on_closed = on_closed
        self._running: dict[int, int] = {}  # index -> request id
        self._unread: list[tuple[int, Output]] = []
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._is_closed = False
        self.num_choices = 0

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        salt: str,
        priority: int,
        fairness_key: str,
        hints: Hints | None = None,
    ) -> None:
        """Queue one more answer; errors are those of ``Engine.submit``."""
        index = self.num_choices
        self.num_choices += 1
        self._running[index] = self._engine.submit(
            prompt_ids,
            params,
            partial(self._mailbox.post, self, index),
            salt=salt,
            priority=priority,
            fairness_key=fairness_key,
            hints=hints,
        )

    def receive(self, index: int, output: Output) -> None:
        """Take one output from the mailbox."""
        if output.finish_reason is not None:
            self._running.pop(index, None)
            self._on_finished(output)
        if not self._is_closed:
            self._unread.append((index, output))
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """Make the reader raise ``error`` and stop what runs."""
        self._failure = self._failure or error
        self._wake.set()
        self._abort()

    def close(self) -> None:
        """Abort what still runs; nothing is delivered any more. More than one call is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        self._abort()
        self._on_closed(self)

    async def news(self) -> AsyncIterator[list[ChoiceDelta]]:
        """What has been said since the last look, choices in order, until all have finished.

        Raises:
            ApiError: the engine failed or cut off a prompt.
            ClientGoneError: the client has left.
        """
        num_unfinished = self.num_choices
        while num_unfinished:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            batch = self._merge()
            num_unfinished -= sum(item.finish_reason is not None for item in batch)
            if batch:
                yield batch

    @asynccontextmanager
    async def abort_on_disconnect(self, receive: Receive) -> AsyncIterator[None]:
        """Within it, a client that leaves stops generation; at its end the generation is closed.

        Args:
            receive: ASGI's, after the request's body has been read.
        """
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # an empty end of the body
        self.fail(ClientGoneError("the client closed its connection"))

    def _merge(self) -> list[ChoiceDelta]:
        by_index: dict[int, ChoiceDelta] = {}
        for index, output in self._unread:
            if output.finish_reason is FinishReason.ERROR:
                raise to_api_error(output.error or RuntimeError("the engine gave no reason"))
            if output.finish_reason is FinishReason.ABORT:
                raise ApiError(503, "the server cut this request off", code="request_aborted")
            item = by_index.setdefault(index, ChoiceDelta(index))
            item.add(output)
            if output.finish_reason is not None:
                self._count(index, output)
        self._unread.clear()
        return [by_index[index] for index in sorted(by_index)]

    def _count(self, index: int, output: Output) -> None:
        stats = output.stats
        if stats is None:
            return
        self.usage.completion_tokens += stats.num_output_tokens
        self.usage.hint_status = self.usage.hint_status or stats.hint_status
        if index % self.num_each == 0:  # a prompt counts once, however many answer it
            self.usage.prompt_tokens += stats.num_prompt_tokens
            self.usage.cached_tokens += stats.num_cached_tokens
            self.usage.host_tokens += stats.num_cached_host_tokens

    def _abort(self) -> None:
        for request_id in self._running.values():
            self._engine.abort(request_id)
        self._running.clear()
