"""Fast-forward of decode steps: an engine that runs a decode step several times as one.

Only in virtual time is it known when the next event is due. Until then the plan of each step would
be that of the one before, so the steps are planned and simulated together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.step_in_flight import StepInFlight
from kvflow_jax.engine.step_plan import Preempted, StepPlan
from kvflow_jax.errors import IntegrityError
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.interfaces import StepHandle
from kvflow_jax.sim.runner import FastForwardRunner


@dataclass(slots=True)
class RepeatedPlan(StepPlan):
    """A plan of decode rows that runs ``num_repeats`` times; each decodes the next token."""

    num_repeats: int = 1

    @property
    def num_steps(self) -> int:
        """Steps that the plan takes on the device."""
        return self.num_repeats


class FastForwardEngine(Engine):
    """An engine that plans decode steps together."""

    runner: FastForwardRunner

    def _plan_step(self, previous: StepInFlight | None, requeued: Sequence[Preempted]) -> StepPlan:
        plan = super()._plan_step(previous, requeued)
        # Transfers are published between two steps: those that start now would wait longer. The
        # caller of a request that ends with the step in flight may send its next one.
        ends_a_request = previous is not None and previous.ends_a_request
        if not plan.chunks or self.transfer_manager.has_plans or ends_a_request:
            return plan
        max_repeats = self._max_repeats(plan)
        if max_repeats < 2:
            return plan
        batch, _, _ = self.sizes.shapes.build(plan.chunks)
        return self._repeat(plan, self.runner.num_repeats(batch, max_repeats))

    def _submit(self, plan: StepPlan, batch: Batch[np.ndarray]) -> StepHandle:
        if isinstance(plan, RepeatedPlan):
            return self.runner.submit_repeated(batch, plan.num_repeats)
        return super()._submit(plan, batch)

    def _max_repeats(self, plan: StepPlan) -> int:
        """Return how often a plan can be repeated before the next plan would differ.

        1 unless all its chunks decode.
        """
        if plan.prefill_lengths or plan.admitted or self.sizes.shapes.deterministic:
            return 1
        if any(request.num_in_flight for request in self.scheduler.waiting):
            return 1  # a preempted request can be admitted once its token in flight is sampled
        requests = (chunk.request for chunk in plan.chunks)
        return 1 + min(request.max_len - request.num_tokens for request in requests)

    def _repeat(self, plan: StepPlan, num_repeats: int) -> StepPlan:
        """Return a decode plan that is repeated; fewer times if blocks would need a preemption."""
        cache, page = self.cache, self.cache.page_size
        leases = [(chunk.request.lease, chunk.start) for chunk in plan.chunks]

        def num_missing(num_tokens: int) -> list[int]:
            """Return the blocks that each chunk lacks to decode ``num_tokens`` tokens."""
            return [
                max(0, -(-(start + num_tokens) // page) - len(lease or ()))
                for lease, start in leases
            ]

        while num_repeats > 1 and sum(num_missing(num_repeats)) > cache.num_available:
            num_repeats //= 2
        if num_repeats == 1:
            return plan
        missing, now = num_missing(num_repeats), self.clock.now()
        for i, (chunk, num_blocks) in enumerate(zip(plan.chunks, missing, strict=True)):
            request, lease = chunk.request, chunk.request.lease
            assert lease is not None
            if num_blocks and not cache.grow(lease, num_blocks, now):
                raise IntegrityError("blocks counted as available could not be leased")
            request.num_computed += num_repeats - 1
            self.scheduler.waiting.serve(request.share, num_repeats - 1)
            request.num_in_flight += num_repeats - 1
            num_pages = -(-request.num_computed // page)
            plan.chunks[i] = replace(chunk, pages=cache.pages(lease, num_pages))
        parts = {field.name: getattr(plan, field.name) for field in fields(StepPlan)}
        return RepeatedPlan(**parts, num_repeats=num_repeats)
