"""How far the prompts that take several steps are: for the metrics, and for the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.requests.outputs import PrefillProgress
from kvflow_jax.requests.request import Request

log = logging.getLogger(__name__)

LOG_S = 10.0  # between two lines about a request


def prefill_progress(running: Iterable[Request]) -> PrefillProgress:
    """Return how far the prompts of running requests are that are not computed."""
    prompts = [request for request in running if request.num_computed < request.num_prompt]
    if not prompts:
        return PrefillProgress()
    return PrefillProgress(
        len(prompts),
        sum(request.num_prompt for request in prompts),
        sum(request.num_computed for request in prompts),
    )


def log_progress(plan: StepPlan, now: float) -> None:
    """Log how far the prompts of a step that has ended are, those of ``LOG_S`` without a line.

    Args:
        now: seconds of the engine's clock.
    """
    for chunk in plan.chunks:
        request = chunk.request
        start_s = request.first_scheduled_s
        if chunk.is_decode or chunk.samples or start_s is None:
            continue
        if now - (request.progress_logged_s or start_s) < LOG_S:
            continue
        request.progress_logged_s = now
        num_done = chunk.start + chunk.length
        num_cached = request.num_cached or 0
        num_left = request.num_prompt - num_done
        left_s = num_left * (now - start_s) / max(1, num_done - num_cached)
        agent_id = request.hints and request.hints.agent_id
        agent = f" of agent {agent_id!r}" if agent_id else ""
        log.info(
            "request %d%s: %d of %d prompt tokens (%d cached) in %.0f s, about %.0f s left",
            request.id,
            agent,
            num_done,
            request.num_prompt,
            num_cached,
            now - start_s,
            left_s,
        )
