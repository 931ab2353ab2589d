"""Plays a workload against any server, in a closed loop: a call starts when those before end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.workloads import Run, Workload
from kvflow_jax.errors import KVFlowError
from kvflow_jax.hints import Hints
from kvflow_jax.outputs import EngineStats, Output
from kvflow_jax.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What a call met. Times are seconds of the server's clock."""

    client: str
    agent: str
    round: int
    start_s: float
    first_token_s: float
    end_s: float
    num_prompt: int
    num_cached: int  # prompt tokens from the cache, and
    num_host: int  # of those, loaded from the host for this call
    num_fixed_recomputed: int

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.start_s


class Server(Protocol):
    """``EngineThread``, or a ``Simulation``."""

    @property
    def stats(self) -> EngineStats: ...

    def submit(
        self,
        prompt_ids: np.ndarray,
        params: SamplingParams,
        on_output: Callable[[Output], None],
        *,
        client: str = "",
        hints: Hints | None = None,
    ) -> Any: ...


class Driver:
    """Plays a workload. What follows a call is submitted from its last output.

    Attributes:
        records: in the order in which the calls ended.
        warm_stats: the server's, when the first call after round 0 started.
        is_done: set when the last call has ended, or one has failed.
    """

    def __init__(self, workload: Workload, server: Server, *, hinted: bool = True) -> None:
        self.records: list[CallRecord] = []
        self.warm_stats: EngineStats | None = None
        self.is_done = threading.Event()
        self._workload = workload
        self._server = server
        self._hinted = hinted
        self._lock = threading.Lock()  # guards what follows, and the records
        self._missing = {
            (run, number): set(call.after)
            for run in workload.runs
            for number, call in enumerate(run.calls)
        }
        self._error: Exception | None = None

    def start(self) -> None:
        """Start the calls that wait for none."""
        for (run, number), missing in list(self._missing.items()):
            if not missing:
                self._submit(run, number)

    def finish(self, timeout_s: float | None = None) -> list[CallRecord]:
        """Wait for the end; what all calls met.

        Raises:
            KVFlowError, TimeoutError: a call failed, or they do not end.
        """
        if not self.is_done.wait(timeout_s):
            raise TimeoutError(f"{self._workload.name}: only {len(self.records)} calls have ended")
        if self._error is not None:
            raise self._error
        return self.records

    def _submit(self, run: Run, number: int) -> None:
        call = run.calls[number]
        if call.round and self.warm_stats is None:
            self.warm_stats = self._server.stats
        hints = Hints(
            workflow_id=run.workflow_id,
            agent_id=call.agent,
            graph=run.graph,
            num_fixed=call.num_fixed,
        )

        def listen(output: Output) -> None:
            if output.finish_reason is not None:
                self._end(run, number, output)

        params = SamplingParams(max_tokens=call.num_output, temperature=0.0, ignore_eos=True)
        self._server.submit(
            call.prompt, params, listen, client=run.client, hints=hints if self._hinted else None
        )

    def _end(self, run: Run, number: int, output: Output) -> None:
        # On the engine's thread, where nobody would see an error.
        try:
            if output.error is not None:
                raise output.error
            self._note(run, number, output)
            for following in self._ready_after(run, number):
                self._submit(run, following)
        except KVFlowError as error:
            self._error = error
            self.is_done.set()

    def _note(self, run: Run, number: int, output: Output) -> None:
        call, stats = run.calls[number], output.stats
        assert stats is not None
        assert stats.first_token_s is not None
        record = CallRecord(
            client=run.client,
            agent=call.agent,
            round=call.round,
            start_s=stats.arrival_s,
            first_token_s=stats.first_token_s,
            end_s=stats.finished_s,
            num_prompt=stats.num_prompt_tokens,
            num_cached=stats.num_cached_tokens,
            num_host=stats.num_cached_host_tokens,
            num_fixed_recomputed=max(0, call.num_fixed - stats.num_cached_tokens),
        )
        with self._lock:
            self.records.append(record)
            if len(self.records) == self._workload.num_calls:
                self.is_done.set()

    def _ready_after(self, run: Run, number: int) -> list[int]:
        ready = []
        with self._lock:
            for following, call in enumerate(run.calls):
                if number in call.after:
                    missing = self._missing[run, following]
                    missing.discard(number)
                    if not missing:
                        ready.append(following)
        return ready
