"""The gate between requests and admission control.

It reports requests and runs to ``AdmissionControl``, and throttled runs to ``RunTracker``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvflow_jax.cache.next_read import ReadKind
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.control.admission.admission_control import AdmissionControl
from kvflow_jax.control.readers import AgentReader, Reader
from kvflow_jax.control.run_tracker import Run, RunTracker
from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request


class AdmissionGate:
    """Decides which requests may run; all of them without admission control.

    Args:
        compute_s, decode_s: see ``AdmissionControl``; None switches admission control off.
    """

    def __init__(
        self,
        cache: PrefixCache,
        run_tracker: RunTracker,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self._cache, self._run_tracker = cache, run_tracker
        self._control: AdmissionControl | None = None
        if compute_s is not None and decode_s is not None:
            throttle = partial(run_tracker.set_throttled, is_throttled=True)
            resume = partial(run_tracker.set_throttled, is_throttled=False)
            self._control = AdmissionControl(
                self._num_blocks, compute_s, decode_s, throttle, resume
            )

    def reset(self, cache: PrefixCache) -> None:
        """Go on with an empty cache."""
        self._cache = cache
        if self._control is not None:
            self._control.on_cache_reset()

    @property
    def num_throttled(self) -> int:
        """Workflow runs with calls that wait for their time slice."""
        return 0 if self._control is None else self._control.num_queued

    def can_admit(self, request: Request, run: Run) -> bool:
        """Return whether a request of a run may be scheduled; always once it has been."""
        if self._control is None or request.first_scheduled_s is not None:
            return True
        return not self._control.is_throttled(run.key)

    def on_call_added(self, run: Run, agent: str | None, request: Request, now: float) -> None:
        """Record a new call of a run, by ``agent`` if that is known; the run may be throttled.

        Args:
            request: the call; the run has its claims.
        """
        self.drop_ended_runs()
        if self._control is None:
            return
        readers = [
            AgentReader(run.key.tenant, agent)
            for agent, read in run.agent_reads.items()
            if read.kind < ReadKind.NEVER
        ]
        self._control.on_call_added(
            run.key,
            readers,
            now,
            tenant=request.share,
            priority=request.priority,
            rank=request.rank,
        )
        if agent is not None and self._control.is_throttled(run.key):
            self._run_tracker.throttle_call(run, agent)

    def on_call_finished(self, run: Run, now: float) -> None:
        """Record the end of a call of a run."""
        if self._control is not None:
            self._control.on_call_finished(run.key, now)

    def on_prefill_done(self, request: Request, *readers: Reader) -> None:
        """Record which blocks of a prompt, read by ``readers``, were cached and which computed."""
        if self._control is None or request.scores_prompt:  # the latter is computed whole
            return
        page_size = self._cache.page_size
        # The last token is always computed, so the block that it ends is never a hit.
        hashes = block_hashes(request, request.num_prompt - 1, page_size)
        self._control.on_prefill_done(hashes, (request.num_cached or 0) // page_size, readers)

    def set_working_set(self, reader: Reader, request: Request, num_tokens: int) -> None:
        """Set the working set of a reader to the first ``num_tokens`` tokens of a request."""
        if self._control is not None:
            hashes = block_hashes(request, num_tokens, self._cache.page_size)
            self._control.set_working_set(reader, hashes)

    def add_reader(self, run: Run, reader: Reader) -> None:
        """Record that a run uses one more reader."""
        if self._control is not None:
            self._control.add_readers(run.key, [reader])

    def remove_reader(self, reader: Reader, run: Run | None) -> None:
        """Forget a reader, which belonged to ``run`` or to no single run."""
        if self._control is not None:
            self._control.remove_working_set(reader)
            if run is not None:
                self._control.remove_reader(run.key, reader)

    def update(self, now: float) -> None:
        """Throttle and resume runs."""
        self.drop_ended_runs()
        if self._control is not None:
            self._control.update(now)

    def drop_ended_runs(self) -> None:
        """Forget the runs that have ended."""
        ended = self._run_tracker.drain_ended()
        if self._control is not None:
            for run in ended:
                self._control.end_run(run)

    def check_integrity(self) -> None:
        """Raise IntegrityError if the counts of admission control are wrong."""
        if self._control is not None:
            self._control.check_integrity()

    def _num_blocks(self) -> int:
        """Return the capacity of both tiers in blocks."""
        return self._cache.num_pages + self._cache.tiers.max_host_blocks
