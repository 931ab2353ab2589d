"""The order of calls: who calls, what was learned from it, and when each agent calls next.

request ──▶ CallerRecognizer ──▶ agent, run, conversation ──▶ LearnedOrder ──▶ next reads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.next_read import NextRead, scheduled
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.control.recognition.caller_recognizer import (
    Caller,
    CallerRecognizer,
    NextCall,
)
from kvflow_jax.control.recognition.tenant_calls import CallingRun
from kvflow_jax.requests.request import Request
from kvflow_jax.reuse.predictor import Forecast

# An agent is read at the first step up to which it has called with this chance.
_LIKELY = 0.25
_MIN_CHANCE = 0.05  # to call next; less is no forecast
_MIN_PREFETCH_CHANCE = 0.2


class CallOrder:
    """Recognises callers, learns in which order they call, and forecasts their next reads.

    Args:
        page_size: tokens of a block.
        learned: what was learned so far.
    """

    def __init__(self, page_size: int, learned: LearnedOrder) -> None:
        self.learned = learned
        self._recognizer = CallerRecognizer(page_size, self._next_calls)

    @property
    def usage(self) -> Usage:
        return self._recognizer.usage

    def begin_call(self, request: Request, now: float) -> Caller:
        """Recognise the caller of a request, and learn from its call."""
        caller = self._recognizer.begin_call(request, now)
        agent = caller.hints.agent_id
        if agent is not None and not request.choice:
            self.learned.observe(request.tenant, caller.history, agent, caller.delay_s)
        return caller

    def end_call(self, request: Request, now: float, *, is_done: bool) -> CallingRun | None:
        """Record the end of a call, and its answer if there was one; return its run."""
        return self._recognizer.end_call(request, now, is_done=is_done)

    def forecast(self, tenant: str, run: CallingRun) -> Mapping[str, NextRead]:
        """Return the next read of each agent in a run."""
        steps = 1.0 if run.num_running else 0.0  # until its next call
        forecasts = self.learned.forecast(tenant, run.history)
        reads = {agent: _next_read(forecast, steps) for agent, forecast in forecasts.items()}
        return {agent: read for agent, read in reads.items() if read is not None}

    def _next_calls(self, tenant: str, history: Sequence[str]) -> Mapping[str, NextCall]:
        return {
            agent: NextCall(chance, None if delay is None else delay.quantile(0.5))
            for agent, (chance, delay) in self.learned.next_calls(tenant, history).items()
        }


def _next_read(forecast: Forecast, first_steps: float) -> NextRead | None:
    """Return the next read that follows from when an agent calls next; None: it is unknown.

    Args:
        first_steps: steps until the next call of the run.
    """
    chance = forecast.steps[0]
    if chance >= _MIN_CHANCE:
        return scheduled(first_steps, chance=chance, skips_prefetch=chance < _MIN_PREFETCH_CHANCE)
    total = 0.0
    for step, chance in enumerate(forecast.steps):
        total += chance
        if total >= _LIKELY:
            return scheduled(first_steps + step)
    return None
