"""A step on the device: its dispatch, and its sampled tokens once it is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.requests.request import Chunk, Request
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.interfaces import Runner, ScoreHandle, StepHandle
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step sampled for a request: one token or more, in order.

    Attributes:
        logprobs: one for each token, if the request wants them.
        chunk: the chunk that they follow; of its draft, all tokens but the last were accepted.
    """

    chunk: Chunk
    tokens: list[int]
    logprobs: tuple[TokenLogprobs, ...]

    @property
    def num_accepted(self) -> int:
        """Number of drafted tokens that were accepted."""
        return len(self.tokens) - 1 if self.chunk.draft else 0


def load_sequence_states(plan: StepPlan, runner: Runner) -> list[tuple[Request, Exception]]:
    """Load the sampler state of the requests that a plan admits, before it is dispatched.

    Returns:
        The requests whose state cannot be loaded, each with its error: the step may still be
        dispatched for the others.
    """
    failed: list[tuple[Request, Exception]] = []
    for request in plan.admitted:
        if request.params.needs_sampler_state:
            try:
                runner.load_sequence_state(request)
            except Exception as error:
                log.exception("the sampler state of request %d cannot be loaded", request.id)
                failed.append((request, error))
    return failed


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A dispatched step whose results the host has not read.

    Attributes:
        is_ahead: it was dispatched while the step before it ran.
    """

    plan: StepPlan
    shape: BatchShape
    dispatched_s: float
    is_ahead: bool
    _handle: StepHandle
    _sample_rows: np.ndarray  # i32[num_chunks], row of each chunk's sample
    # Scores of prompt tokens, with the position of the first of them.
    _scores: list[tuple[Request, int, ScoreHandle]]

    @classmethod
    def dispatch(
        cls,
        plan: StepPlan,
        runner: Runner,
        submit: Callable[[StepPlan, Batch[np.ndarray]], StepHandle],
        shapes: BatchShapes,
        now: float,
        *,
        is_ahead: bool,
    ) -> StepInFlight:
        """Submit a step to the device without waiting for it.

        Args:
            submit: submits the batch of the plan to the runner.
            is_ahead: the step before it is still in flight.

        Raises:
            Exception: any error of ``submit``.
        """
        batch, sample_rows, starts = shapes.build(plan.chunks)
        mask_slots: list[int] = []
        masks: list[np.ndarray] = []
        for chunk, row in zip(plan.chunks, sample_rows.tolist(), strict=True):
            if chunk.samples and (mask := chunk.request.token_mask) is not None:
                mask_slots += [chunk.request.seq_slot, *shapes.draft_mask_slots(row, chunk)]
                masks += [mask, *chunk.draft_masks]
        if masks:
            runner.set_token_masks(np.array(mask_slots, np.int32), np.stack(masks))
        handle = submit(plan, batch)
        scores = list(_score_prompts(runner, plan, starts))
        return cls(plan, batch.shape, now, is_ahead, handle, sample_rows, scores)

    def results(self) -> list[Sampled]:
        """Wait for the step and return the requests that sampled, with their tokens.

        Append the scores of prompt tokens to their requests' ``prompt_logprobs``.

        Raises:
            Exception: any error of the step on the device.
        """
        sampled, logprobs = self._handle.result(), self._handle.logprobs()
        # Read all scores before any request is changed: reading them may raise.
        scores = [
            (request, position, handle.result()) for request, position, handle in self._scores
        ]
        for request, position, request_scores in scores:
            _append_scores(request, position, request_scores)
        by_row = np.atleast_2d(sampled).T.tolist()
        return [
            _sampled(chunk, row, by_row, logprobs)
            for chunk, row in zip(self.plan.chunks, self._sample_rows.tolist(), strict=True)
            if chunk.samples
        ]

    @property
    def ends_a_request(self) -> bool:
        """True if the step samples the last token of one of its requests."""
        requests = (chunk.request for chunk in self.plan.chunks)
        return any(request.num_tokens == request.max_len for request in requests)


def _sampled(
    chunk: Chunk, row: int, by_row: list[list[int]], logprobs: Logprobs[np.ndarray] | None
) -> Sampled:
    """Return the samples of a chunk from its row on.

    A drafted token is accepted if it is what the model samples in its place: the sample depends on
    seed and position, so that it is the token that the model would have sampled without drafts. The
    last sample follows the accepted ones.
    """
    tokens, num_top = by_row[row], chunk.request.params.logprobs
    for i, guess in enumerate(chunk.draft):
        if tokens[-1] != guess:
            break
        tokens = [*tokens, *by_row[row + 1 + i]]
    if not chunk.draft:
        return Sampled(chunk, tokens, _logprobs_of(logprobs, row, tokens[0], num_top))
    all_logprobs = [
        one
        for i, token in enumerate(tokens)
        for one in _logprobs_of(logprobs, row + i, token, num_top)
    ]
    return Sampled(chunk, tokens, tuple(all_logprobs))


def _score_prompts(
    runner: Runner,
    plan: StepPlan,
    starts: np.ndarray,  # i32[num_chunks], flat index of each chunk's first token in the step
) -> Iterator[tuple[Request, int, ScoreHandle]]:
    """Dispatch the scoring of the prompt tokens that follow the tokens of each chunk."""
    for chunk, start in zip(plan.chunks, starts.tolist(), strict=True):
        request, end = chunk.request, chunk.start + chunk.length
        if not request.scores_prompt:
            continue
        targets = request.tokens[chunk.start + 1 : min(end + 1, request.num_prompt)]
        position = chunk.start + 1
        for handle in runner.score(start, targets) if len(targets) else ():
            yield request, position, handle
            position += SCORE_CHUNK_LEN


def _append_scores(request: Request, position: int, scores: Logprobs[np.ndarray]) -> None:
    """Append scores of the prompt tokens from ``position`` on.

    Skip those the request has: after a preemption it scores its first tokens again.
    """
    num_top = request.params.prompt_logprobs
    for row in range(len(scores.chosen)):
        if position + row == len(request.prompt_logprobs) + 1:
            token = int(request.tokens[position + row])
            request.prompt_logprobs += _logprobs_of(scores, row, token, num_top)


def _logprobs_of(
    logprobs: Logprobs[np.ndarray] | None, row: int, token: int, num_top: int | None
) -> tuple[TokenLogprobs, ...]:
    """Return the logprobs of one token, or nothing if the request wants none."""
    if logprobs is None or num_top is None:
        return ()
    ids, values = logprobs.top_ids[row, :num_top], logprobs.top[row, :num_top]
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return (TokenLogprobs(token, float(logprobs.chosen[row]), top),)
