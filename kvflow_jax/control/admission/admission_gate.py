"""Turns of runs: tells ``Admission`` what requests and runs do, and ``Progress`` who waits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS
from kvflow_jax.control.admission.admission_control import Admission
from kvflow_jax.control.run_tracker import Progress, Run
from kvflow_jax.requests.block_hashes import block_keys
from kvflow_jax.requests.request import Request


class Turns:
    """Says which requests wait because their runs do.

    Args:
        compute_s, decode_s: see ``Admission``; None: no run ever waits.
    """

    def __init__(
        self,
        cache: PrefixCache,
        progress: Progress,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self._cache, self._progress = cache, progress
        self._admission: Admission | None = None
        if compute_s is not None and decode_s is not None:
            park = partial(progress.park, is_parked=True)
            resume = partial(progress.park, is_parked=False)
            self._admission = Admission(self._num_blocks, compute_s, decode_s, park, resume)

    def reset(self, cache: PrefixCache) -> None:
        """Go on with a cache that is empty."""
        self._cache = cache
        if self._admission is not None:
            self._admission.lose_all()

    @property
    def num_held_back(self) -> int:
        """Runs whose requests wait until others have had their turn."""
        return 0 if self._admission is None else self._admission.num_queued

    def may_begin(self, request: Request, run: Run) -> bool:
        """Whether a request of a run need not wait."""
        if self._admission is None or request.first_scheduled_s is not None:
            return True
        return not self._admission.holds_back(run.key)

    def arrive(self, run: Run, agent: str | None, priority: int, now: float) -> None:
        """A run has a call more, of this agent, and may have to wait for its turn."""
        self._drop_ended()
        if self._admission is None:
            return
        agents = [agent for agent, steps in run.values.items() if steps < NEVER_STEPS]
        owners = [("agent", run.key[0], agent) for agent in agents]
        self._admission.call(run.key, owners, now, priority=priority)
        if agent is not None and self._admission.holds_back(run.key):
            self._progress.hold(run, agent)

    def finish(self, run: Run, now: float) -> None:
        """A call of a run has ended."""
        if self._admission is not None:
            self._admission.called(run.key, now)

    def computed(self, request: Request, *owners: Hashable) -> None:
        """A request of these owners has been computed, as far as it was not found."""
        if self._admission is None or request.scores_prompt:  # which would not be shortened
            return
        page = self._cache.page_size
        # The last token is always computed, so that its block is never found.
        keys = block_keys(request, request.num_prompt - 1, page)
        self._admission.found(keys, (request.num_cached or 0) // page, owners)

    def reads(self, owner: Hashable, request: Request, num_tokens: int) -> None:
        """An owner will read a request's first tokens again."""
        if self._admission is not None:
            self._admission.reads(owner, block_keys(request, num_tokens, self._cache.page_size))

    def join(self, run: Run, owner: Hashable) -> None:
        """A run makes use of one more owner."""
        if self._admission is not None:
            self._admission.join(run.key, [owner])

    def forget(self, owner: Hashable, run: Run | None) -> None:
        """An owner reads nothing again; it was of this run, or of no single one."""
        if self._admission is not None:
            self._admission.forget(owner)
            if run is not None:
                self._admission.leave(run.key, owner)

    def decide(self, now: float) -> None:
        """Hold runs back and let them go on, as things stand."""
        self._drop_ended()
        if self._admission is not None:
            self._admission.decide(now)

    def check_integrity(self) -> None:
        """Raise IntegrityError where counts are wrong."""
        if self._admission is not None:
            self._admission.check_integrity()

    def _drop_ended(self) -> None:
        """Runs that are over need no turn any more."""
        if self._admission is not None:
            for run in self._progress.ended:
                self._admission.end(run)
        self._progress.ended.clear()

    def _num_blocks(self) -> int:
        """What both tiers hold."""
        return self._cache.table.num_slots + self._cache.residency.host.max_blocks
