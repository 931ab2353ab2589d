"""Delivery of outputs from the engine thread to the event loop, batched per wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from starlette.types import Receive

from kvflow_jax.requests.outputs import FinishReason, Output, TokenLogprobs
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.serve.errors import ApiError, ClientDisconnectedError, to_api_error
from kvflow_jax.serve.prompt_edits import PromptEdit
from kvflow_jax.serve.protocols import EngineClient
from kvflow_jax.workflow.hints import HintStatus


class Mailbox:
    """A queue from the engine thread to the event loop; one wake-up delivers all pending outputs.

    The engine thread calls ``post``, which never blocks. Everything else runs on the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[Generation, int, Output]] = deque()
        self._is_wakeup_scheduled = False

    def post(self, generation: Generation, index: int, output: Output) -> None:
        # Append, then read the flag; _deliver clears the flag, then reads the queue. In that order
        # an output either is seen by the scheduled wake-up or schedules the next one.
        self._pending.append((generation, index, output))
        if self._is_wakeup_scheduled:
            return
        self._is_wakeup_scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The server has stopped: no reader is left, and the engine must still finish.

    def _deliver(self) -> None:
        self._is_wakeup_scheduled = False
        # Outputs appended during this loop have scheduled a wake-up of their own.
        for _ in range(len(self._pending)):
            generation, index, output = self._pending.popleft()
            generation.receive(index, output)


@dataclass(slots=True)
class ChoiceDelta:
    """The merged outputs of one choice since the last wake-up.

    Attributes:
        text_ends: for each of ``logprobs``, the length of the text up to its token.
        prompt_ids: in the first delta of the choice, the prompt, i32[num_prompt].
        token_ids: the new tokens; some may have no text yet.
    """

    index: int
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text_ends: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    reasoning: str = ""  # before the text
    num_reasoning_tokens: int = 0  # of all tokens of the choice so far
    prompt_ids: np.ndarray | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def needs_chunk(self) -> bool:
        """True if there is anything to send; a token may have no text yet (incomplete UTF-8)."""
        content = self.text or self.reasoning or self.logprobs or self.prompt_logprobs
        return bool(content) or self.finish_reason is not None

    def add(self, output: Output | ChoiceDelta) -> None:
        """Append a later output."""
        begin = len(self.text)
        self.text += output.text
        self.reasoning += output.reasoning
        self.num_reasoning_tokens = output.num_reasoning_tokens
        self.token_ids += output.token_ids
        self.prompt_logprobs += output.prompt_logprobs
        self.logprobs += output.logprobs
        if isinstance(output, ChoiceDelta):
            self.text_ends += [begin + end for end in output.text_ends]
            self.prompt_ids = output.prompt_ids if self.prompt_ids is None else self.prompt_ids
        else:
            ends = output.text_ends or (len(output.text),) * len(output.logprobs)
            self.text_ends += [begin + end for end in ends]
            if output.ends_at_token:
                # The stop token is not part of the text.
                self.logprobs, self.text_ends = self.logprobs[:-1], self.text_ends[:-1]
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


@dataclass(slots=True)
class Usage:
    """Token counts of one HTTP request, over all its choices; known once these have finished.

    Attributes:
        hint_status: outcome of the hints; known with the first output.
        prompt_edits: what was left out of the prompt, moved or replaced; known from the start.
    """

    prompt_tokens: int = 0  # known from the start
    cached_tokens: int = 0
    host_tokens: int = 0  # the part of cached_tokens that was loaded from host memory
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # the part of completion_tokens up to the end of the reasoning
    hint_status: HintStatus | None = None
    prompt_edits: frozenset[PromptEdit] = frozenset()


class Generation:
    """The engine requests of one HTTP request, numbered in order: ``n`` for each prompt.

    Runs on the event loop. Every code path must end in ``close``, which aborts running requests.

    Args:
        engine: receives the prompts.
        mailbox: delivers their outputs.
        on_finished: called once with the last output of each request.
        on_closed: called once by ``close``.
        num_per_prompt: number of choices per prompt, OpenAI's ``n``.
        on_prompt_finished: called once all choices of a prompt have finished, with the most output
            tokens of one.
        tenant: who may abort it.
        ids: under which it may be aborted.
    """

    def __init__(
        self,
        engine: EngineClient,
        mailbox: Mailbox,
        on_finished: Callable[[Output], None],
        on_closed: Callable[[Generation], None],
        num_per_prompt: int = 1,
        *,
        on_prompt_finished: Callable[[int], None] = lambda max_output_tokens: None,
        tenant: str = "",
        ids: frozenset[str] = frozenset(),
    ) -> None:
        self.tenant, self.ids = tenant, ids
        self._on_prompt_finished = on_prompt_finished
        self._output_lens: dict[int, list[int]] = {}  # of finished choices, by prompt
        self.num_per_prompt = num_per_prompt
        self.usage = Usage()
        self._engine = engine
        self._mailbox = mailbox
        self._on_finished = on_finished
        self._on_closed = on_closed
        self._running: dict[int, int] = {}  # index -> request id
        self._prompts: dict[int, np.ndarray] = {}  # of choices without a delta, by index
        self._unread: list[tuple[int, Output]] = []
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._is_closed = False
        self._is_aborted = False  # by ``abort``
        self.num_choices = 0

    def submit(self, spec: RequestSpec) -> None:
        """Submit one more choice; raise the errors of ``EngineClient.submit``."""
        index = self.num_choices
        self.num_choices += 1
        # A prompt counts once, however many choices answer it.
        if index % self.num_per_prompt == 0:
            self.usage.prompt_tokens += len(spec.prompt_ids)
        self._prompts[index] = spec.prompt_ids
        self._running[index] = self._engine.submit(spec, partial(self._mailbox.post, self, index))

    def receive(self, index: int, output: Output) -> None:
        """Accept one output from the mailbox."""
        if output.finish_reason is not None:
            self._running.pop(index, None)
            self._on_finished(output)
            self._note_finished(index, output)
        if not self._is_closed:
            self._unread.append((index, output))
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """Make ``deltas`` raise ``error``, and abort the running requests."""
        self._failure = self._failure or error
        self._wake.set()
        self._abort()

    def abort(self) -> None:
        """End the running requests early; ``deltas`` still yields what they have generated."""
        self._is_aborted = True
        for request_id in self._running.values():
            self._engine.abort(request_id)

    def close(self) -> None:
        """Abort the running requests and stop delivery. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._abort()
        self._on_closed(self)

    async def deltas(self) -> AsyncIterator[list[ChoiceDelta]]:
        """Yield new outputs, merged per choice and in order of choices, until all have finished.

        Raises:
            ApiError: the engine failed or aborted a request.
            ClientDisconnectedError: the client has disconnected.
        """
        num_unfinished = self.num_choices
        while num_unfinished:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            batch = self._merge()
            num_unfinished -= sum(delta.finish_reason is not None for delta in batch)
            if batch:
                yield batch

    @asynccontextmanager
    async def abort_on_disconnect(self, receive: Receive) -> AsyncIterator[None]:
        """Abort generation if the client disconnects within the context; close it at the end.

        Args:
            receive: ASGI's ``receive``, after the body of the request has been read.
        """
        watcher = asyncio.create_task(self._fail_on_disconnect(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self.close()

    async def _fail_on_disconnect(self, receive: Receive) -> None:
        # An empty last part of the body may come first.
        while (await receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientDisconnectedError("the client closed its connection"))

    def _merge(self) -> list[ChoiceDelta]:
        by_index: dict[int, ChoiceDelta] = {}
        for index, output in self._unread:
            if (error := self._error_of(output)) is not None:
                # Raised behind the outputs that came before it.
                self._failure = self._failure or error
                self._wake.set()
                break
            if index not in by_index:
                by_index[index] = ChoiceDelta(index, prompt_ids=self._prompts.pop(index, None))
            delta = by_index[index]
            delta.add(output)
            self.usage.hint_status = self.usage.hint_status or output.hint_status
            if output.finish_reason is not None:
                self._count_usage(index, output)
        self._unread.clear()
        return [by_index[index] for index in sorted(by_index)]

    def _error_of(self, output: Output) -> ApiError | None:
        """Return why a request has ended without an answer."""
        if output.finish_reason is FinishReason.ERROR:
            return to_api_error(output.error or RuntimeError("the engine reported no error"))
        if output.finish_reason is FinishReason.ABORT and not self._is_aborted:
            return ApiError(503, "the server aborted this request", code="request_aborted")
        return None

    def _note_finished(self, index: int, output: Output) -> None:
        if output.stats is None:
            return
        prompt = index // self.num_per_prompt
        lens = self._output_lens.setdefault(prompt, [])
        lens.append(output.stats.num_output_tokens)
        if len(lens) == self.num_per_prompt:
            self._on_prompt_finished(max(self._output_lens.pop(prompt)))

    def _count_usage(self, index: int, output: Output) -> None:
        stats = output.stats
        if stats is None:
            return
        self.usage.completion_tokens += stats.num_output_tokens
        self.usage.reasoning_tokens += output.num_reasoning_tokens
        if index % self.num_per_prompt == 0:
            self.usage.cached_tokens += stats.num_cached_tokens
            self.usage.host_tokens += stats.num_cached_host_tokens

    def _abort(self) -> None:
        for request_id in self._running.values():
            self._engine.abort(request_id)
        self._running.clear()
