"""Turns of runs: tells ``AdmissionControl`` what requests and runs do, and ``RunTracker`` who waits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS
from kvflow_jax.control.admission.admission_control import AdmissionControl
from kvflow_jax.control.run_tracker import Run, RunTracker
from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request


class AdmissionGate:
    """Says which requests wait because their runs do.

    Args:
        compute_s, decode_s: see ``AdmissionControl``; None: no run ever waits.
    """

    def __init__(
        self,
        cache: PrefixCache,
        progress: RunTracker,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self._cache, self._run_tracker = cache, progress
        self._control: AdmissionControl | None = None
        if compute_s is not None and decode_s is not None:
            park = partial(progress.throttle, is_throttled=True)
            resume = partial(progress.throttle, is_throttled=False)
            self._control = AdmissionControl(self._num_blocks, compute_s, decode_s, park, resume)

    def reset(self, cache: PrefixCache) -> None:
        """Go on with a cache that is empty."""
        self._cache = cache
        if self._control is not None:
            self._control.lose_all()

    @property
    def num_throttled(self) -> int:
        """Runs whose requests wait until others have had their turn."""
        return 0 if self._control is None else self._control.num_queued

    def may_begin(self, request: Request, run: Run) -> bool:
        """Whether a request of a run need not wait."""
        if self._control is None or request.first_scheduled_s is not None:
            return True
        return not self._control.is_throttled(run.key)

    def arrive(self, run: Run, agent: str | None, priority: int, now: float) -> None:
        """A run has a call more, of this agent, and may have to wait for its turn."""
        self._drop_ended()
        if self._control is None:
            return
        agents = [agent for agent, steps in run.values.items() if steps < NEVER_STEPS]
        readers = [("agent", run.key[0], agent) for agent in agents]
        self._control.call(run.key, readers, now, priority=priority)
        if agent is not None and self._control.is_throttled(run.key):
            self._run_tracker.throttle_call(run, agent)

    def finish(self, run: Run, now: float) -> None:
        """A call of a run has ended."""
        if self._control is not None:
            self._control.called(run.key, now)

    def computed(self, request: Request, *readers: Hashable) -> None:
        """A request of these readers has been computed, as far as it was not found."""
        if self._control is None or request.scores_prompt:  # which would not be shortened
            return
        page = self._cache.page_size
        # The last token is always computed, so that its block is never found.
        keys = block_hashes(request, request.num_prompt - 1, page)
        self._control.found(keys, (request.num_cached or 0) // page, readers)

    def reads(self, reader: Hashable, request: Request, num_tokens: int) -> None:
        """An reader will read a request's first tokens again."""
        if self._control is not None:
            self._control.reads(reader, block_hashes(request, num_tokens, self._cache.page_size))

    def join(self, run: Run, reader: Hashable) -> None:
        """A run makes use of one more reader."""
        if self._control is not None:
            self._control.join(run.key, [reader])

    def forget(self, reader: Hashable, run: Run | None) -> None:
        """An reader reads nothing again; it was of this run, or of no single one."""
        if self._control is not None:
            self._control.forget(reader)
            if run is not None:
                self._control.leave(run.key, reader)

    def decide(self, now: float) -> None:
        """Hold runs back and let them go on, as things stand."""
        self._drop_ended()
        if self._control is not None:
            self._control.decide(now)

    def check_integrity(self) -> None:
        """Raise IntegrityError where counts are wrong."""
        if self._control is not None:
            self._control.check_integrity()

    def _drop_ended(self) -> None:
        """Runs that are over need no turn any more."""
        if self._control is not None:
            for run in self._run_tracker.ended:
                self._control.end(run)
        self._run_tracker.ended.clear()

    def _num_blocks(self) -> int:
        """What both tiers hold."""
        return self._cache.table.num_pages + self._cache.residency.host.max_blocks
