"""Results of calls of the Python API: finished completions and streams."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats, TokenLogprobs
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.workflow.hints import HintStatus


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation.

    Attributes:
        text: the generated text.
        token_ids: the generated tokens, including the one that ended the generation.
        finish_reason: why the generation ended, for example ``stop`` or ``length``.
        stats: the request's times (s) and token counts.
        logprobs: one for each of ``token_ids``, if requested.
        prompt_logprobs: one for each prompt token but the first, if requested.
        stop_reason: the stop string, or the id in ``stop_token_ids``, that ended the generation;
            None if neither did.
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
        """Number of prompt tokens whose KV came from the cache, from device and host memory."""
        return self.stats.num_cached_tokens

    @property
    def num_cached_host_tokens(self) -> int:
        """Number of these whose KV was loaded from host memory for this call."""
        return self.stats.num_cached_host_tokens

    @property
    def hint_status(self) -> HintStatus | None:
        """Whether the call's hints were applied; None if it had none."""
        return self.stats.hint_status

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Completion:
        """Return the outputs of a finished request as one completion."""
        last = outputs[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return cls(
            text="".join(output.text for output in outputs),
            token_ids=tuple(token for output in outputs for token in output.token_ids),
            finish_reason=last.finish_reason,
            stats=last.stats,
            logprobs=tuple(logprob for output in outputs for logprob in output.logprobs),
            prompt_logprobs=tuple(
                logprob for output in outputs for logprob in output.prompt_logprobs
            ),
            stop_reason=last.stop_reason,
        )


class Stream(Iterator[Output]):
    """An iterator over the outputs of one running request.

    Each ``Output`` has the ``text`` and ``token_ids`` since the previous one; the last one also has
    ``finish_reason`` and ``stats``. The request is aborted when the stream is closed or collected.
    """

    def __init__(self, engine: EngineThread, spec: RequestSpec) -> None:
        self._is_over = True  # if ``submit`` raises, there is no request to abort
        self._outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self._engine = engine
        self._request_id = engine.submit(spec, self._outputs.put)
        self._is_over = False

    def __next__(self) -> Output:
        if self._is_over:
            raise StopIteration
        try:
            output = self._outputs.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        self._is_over = output.finish_reason is not None
        if output.error is not None:
            raise output.error
        return output

    def close(self) -> None:
        """Abort the request if it still runs. Idempotent."""
        if not self._is_over:
            self._is_over = True
            self._engine.abort(self._request_id)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Collector:
    """Output callback that keeps all outputs of a request, and puts the last one on a queue.

    It wakes the caller only once, because a wake-up costs the engine 0.1 ms for each token.
    """

    outputs: list[Output]
    last: queue.SimpleQueue[Output]

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.last.put(output)
