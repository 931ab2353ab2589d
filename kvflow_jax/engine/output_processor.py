"""From sampled tokens to outputs, and the ends of requests."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from kvflow_jax.control.controller import Controller
from kvflow_jax.control.hints_as_advice import hints_as_advice
from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.engine.speculator import Speculator
from kvflow_jax.engine.trace import Tracer
from kvflow_jax.errors import KVFlowError, StepFailedError
from kvflow_jax.requests.outputs import FinishReason, Output, TokenLogprobs
from kvflow_jax.requests.request import Request, TokenDelta

log = logging.getLogger(__name__)

_NO_DELTA = TokenDelta("")


class OutputProcessor:
    """Holds the requests in progress, delivers their outputs, and ends them.

    Args:
        tracer, scheduler: return those in use: a failure replaces the scheduler.

    Attributes:
        requests: those in progress, by id.
        num_generated: generated tokens.
        num_prompt_done: prompt tokens of requests that have their first token.
        num_finished: requests that have ended, by finish reason.
    """

    def __init__(
        self,
        controller: Controller,
        speculator: Speculator,
        tracer: Callable[[], Tracer],
        scheduler: Callable[[], Scheduler],
    ) -> None:
        self.requests: dict[int, Request] = {}
        self.num_generated = 0
        self.num_prompt_done = 0
        self.num_finished: Counter[str] = Counter()
        self._controller = controller
        self._speculator = speculator
        self._tracer = tracer
        self._scheduler = scheduler

    def process(
        self, request: Request, tokens: list[int], logprobs: tuple[TokenLogprobs, ...], now: float
    ) -> None:
        """Append sampled tokens to a request, up to its end, and deliver them."""
        text, reasoning, num_before = "", "", request.num_known
        delta, text_ends = _NO_DELTA, []
        for token in tokens:
            request.append(token)
            try:
                delta = request.detokenize(token)
            except Exception as error:
                self.finish(request, FinishReason.ERROR, now, _failure_of(request, error))
                return
            text += delta.text
            text_ends.append(len(text))
            reasoning += delta.reasoning
            if delta.finish_reason is not None:
                break
        num_new = request.num_known - num_before
        self.num_generated += num_new
        if delta.finish_reason is None:
            self._speculator.on_tokens(request)
        is_first = request.first_token_s is None
        if is_first:
            request.first_token_s = now
            self.num_prompt_done += request.num_prompt
        self._scheduler().publish(request, now)
        if is_first:
            with hints_as_advice(request):
                self._controller.on_prefill_done(request, now)
        output = Output(
            request.id,
            text,
            tuple(tokens[:num_new]),
            logprobs=logprobs[:num_new],
            text_ends=tuple(text_ends) if logprobs else (),
            prompt_logprobs=tuple(request.prompt_logprobs) if is_first else (),
            stop_reason=delta.stop_reason,
            completes_grammar=delta.completes_grammar,
            reasoning=reasoning,
            num_reasoning_tokens=request.num_reasoning,
            hint_status=request.hint_status,
        )
        if delta.finish_reason is not None:
            self.finish(request, delta.finish_reason, now, output=output)
        else:
            self._deliver(request, output, now)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        now: float,
        error: KVFlowError | None = None,
        *,
        output: Output | None = None,
    ) -> None:
        """End a request and deliver its last output.

        Args:
            output: the output of its last token, with the rest of its text; None: no token.
        """
        if request.is_finished:
            return
        request.finish_reason = reason
        del self.requests[request.id]
        is_done = reason in (FinishReason.STOP, FinishReason.LENGTH)
        with hints_as_advice(request):
            self._controller.on_request_finished(request, now, is_done=is_done)
        self._tracer().on_finish(request, now)
        self._speculator.on_finished(request, is_done=is_done)
        self.num_finished[reason.value] += 1
        if output is None:
            rest = _rest_of(request)
            output = Output(
                request.id,
                rest.text,
                (),
                reasoning=rest.reasoning,
                num_reasoning_tokens=request.num_reasoning,
                hint_status=request.hint_status,
            )
        last = replace(output, finish_reason=reason, stats=request.stats(now), error=error)
        try:
            self._scheduler().remove(request, now)
        finally:
            # An eviction policy may fail for the released blocks; the request has ended all the
            # same, and no later call would deliver its last output.
            self._deliver(request, last, now)

    def _deliver(self, request: Request, output: Output, now: float) -> None:
        """Call the request's callback; abort the request, and no other, if it raises."""
        try:
            request.on_output(output)
        except Exception:
            log.exception("on_output of request %d failed; the request is aborted", request.id)
            self.finish(request, FinishReason.ABORT, now)


def _failure_of(request: Request, error: Exception) -> KVFlowError:
    """Return the error that a request ends with, whose tokens could not be read."""
    if isinstance(error, KVFlowError):
        return error
    log.error("the output of request %d could not be read", request.id, exc_info=error)
    return StepFailedError(f"the output could not be read: {error}")


def _rest_of(request: Request) -> TokenDelta:
    """Return the pending text of a request that ends without a last token."""
    try:
        return request.flush()
    except Exception:
        log.exception("the rest of the output of request %d could not be read", request.id)
        return _NO_DELTA
