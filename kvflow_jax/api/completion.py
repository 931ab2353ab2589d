"""Answers as callers of the Python API see them: finished, or as they come."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats, TokenLogprobs
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation. ``token_ids`` include the token that ended it.

    Attributes:
        logprobs: one for each of ``token_ids``, if asked for.
        prompt_logprobs: one for each token of the prompt but the first, if asked for.
        stop_reason: the stop string, or the token of ``stop_token_ids``, that ended the text.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: RequestStats
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: str | int | None = None

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens whose KV came from the cache."""
        return self.stats.num_cached_tokens

    @property
    def num_cached_host_tokens(self) -> int:
        """Of those, tokens whose KV was loaded from the host for this call."""
        return self.stats.num_cached_host_tokens

    @property
    def hint_status(self) -> HintStatus | None:
        """What became of the call's hints; None where it had none."""
        return self.stats.hint_status

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Completion:
        """The outputs of a finished request as one."""
        last = outputs[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return cls(
            text="".join(output.text for output in outputs),
            token_ids=tuple(token for output in outputs for token in output.token_ids),
            finish_reason=last.finish_reason,
            stats=last.stats,
            logprobs=tuple(one for output in outputs for one in output.logprobs),
            prompt_logprobs=tuple(one for output in outputs for one in output.prompt_logprobs),
            stop_reason=last.stop_reason,
        )


class Stream(Iterator[Output]):
    """The outputs of one running request, as they come.

    Closing it, or letting go of it, ends the generation.
    """

    def __init__(
        self,
        engine: EngineThread,
        prompt: Sequence[int],
        params: SamplingParams,
        hints: Hints | None = None,
    ) -> None:
        self._is_over = True  # until the request is queued there is nothing to end
        self._news: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self._engine = engine
        self._request_id = engine.submit(prompt, params, self._news.put, hints=hints)
        self._is_over = False

    def __next__(self) -> Output:
        if self._is_over:
            raise StopIteration
        try:
            output = self._news.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        self._is_over = output.finish_reason is not None
        if output.error is not None:
            raise output.error
        return output

    def close(self) -> None:
        """End the generation. Closing twice is fine."""
        if not self._is_over:
            self._is_over = True
            self._engine.abort(self._request_id)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Collector:
    """Keeps a request's outputs and tells of the last: to wake the caller for each costs a step
    0.1 ms a token."""

    outputs: list[Output]
    last: queue.SimpleQueue[Output]

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.last.put(output)
