"""Plays a workload against any server, in a closed loop: a call starts when those before end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from experiments.workloads.base import Run, Workload
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import KVFlowError
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints

Submitted = tuple[Run, int]  # a run, and the number of one of its calls


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What a call met. Times are seconds of the server's clock."""

    client: str
    workflow_id: str
    agent: str
    number: int  # among the calls of its run
    round: int
    start_s: float
    first_token_s: float
    end_s: float
    num_prompt: int
    num_cached: int  # prompt tokens from the cache, and
    num_host: int  # of those, loaded from the host for this call
    num_computed: int  # prompt tokens, again after a preemption included
    num_fixed_recomputed: int

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.start_s


class Server(Protocol):
    """A ``Simulation``, or a ``RealServer``."""

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

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call once so many seconds of the server's clock are over."""


class RealServer:
    """An engine on its thread, with a clock that waits."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self.submit = engine.submit

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        timer.start()


class Driver:
    """Plays a workload. What follows a call is submitted from its last output.

    Attributes:
        records: in the order in which the calls ended.
        submitted: in the order in which they were, as requests are numbered.
        warm_stats: the server's, when the first call after round 0 started.
        is_done: set when the last call has ended, or one has failed.
    """

    def __init__(
        self,
        workload: Workload,
        server: Server,
        *,
        hinted: bool = True,
        on_record: Callable[[CallRecord], object] = lambda _: None,
    ) -> None:
        self.records: list[CallRecord] = []
        self.submitted: list[Submitted] = []
        self.warm_stats: EngineStats | None = None
        self.is_done = threading.Event()
        self._workload = workload
        self._server = server
        self._hinted = hinted
        self._on_record = on_record
        self._lock = threading.Lock()  # guards what follows, and the records
        self._num_missing = {run: [len(call.after) for call in run.calls] for run in workload.runs}
        self._answers = {
            (run, part): list[int]()
            for run in workload.runs
            for call in run.calls
            for part in call.parts
            if isinstance(part, int)
        }
        self._error: Exception | None = None

    def start(self) -> None:
        """Start the runs, each at its time."""
        for run in self._workload.runs:
            for number, call in enumerate(run.calls):
                if not call.after:
                    self._later(run, number, run.start_s + call.pause_s)

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

    def _later(self, run: Run, number: int, seconds: float) -> None:
        if seconds > 0:
            self._server.call_later(seconds, partial(self._submit, run, number))
        else:
            self._submit(run, number)

    def _submit(self, run: Run, number: int) -> None:
        call = run.calls[number]
        if call.round and self.warm_stats is None:
            self.warm_stats = self._server.stats
        hints = None
        if call.agent:
            hints = Hints(
                workflow_id=run.workflow_id,
                agent_id=call.agent,
                graph=run.graph,
                num_fixed=call.num_fixed,
                session_id=call.session,
                session_final=call.is_last,
            )
        prompt = np.concatenate(
            [
                np.array(self._answers[run, part], np.int32) if isinstance(part, int) else part
                for part in call.parts
            ]
        )
        answer = self._answers.get((run, number))

        def listen(output: Output) -> None:
            if answer is not None:
                answer.extend(output.token_ids)
            if output.finish_reason is not None:
                self._end(run, number, output)

        params = SamplingParams(max_tokens=call.num_output, temperature=0.0, ignore_eos=True)
        self.submitted.append((run, number))
        try:
            self._server.submit(
                prompt,
                params,
                listen,
                fairness_key=run.client,
                hints=hints if self._hinted else None,
            )
        except KVFlowError as error:
            self._fail(error)

    def _end(self, run: Run, number: int, output: Output) -> None:
        # On the engine's thread, where nobody would see an error.
        if output.error is not None:
            self._fail(output.error)
            return
        self._note(run, number, output)
        for following in self._ready_after(run, number):
            self._later(run, following, run.calls[following].pause_s)

    def _fail(self, error: KVFlowError) -> None:
        self._error = error
        self.is_done.set()

    def _note(self, run: Run, number: int, output: Output) -> None:
        call, stats = run.calls[number], output.stats
        assert stats is not None
        assert stats.first_token_s is not None
        record = CallRecord(
            client=run.client,
            workflow_id=run.workflow_id,
            agent=call.agent,
            number=number,
            round=call.round,
            start_s=stats.arrival_s,
            first_token_s=stats.first_token_s,
            end_s=stats.finished_s,
            num_prompt=stats.num_prompt_tokens,
            num_cached=stats.num_cached_tokens,
            num_host=stats.num_cached_host_tokens,
            num_computed=stats.num_computed_tokens,
            num_fixed_recomputed=max(0, call.num_fixed - stats.num_cached_tokens),
        )
        with self._lock:
            self.records.append(record)
            if len(self.records) == self._workload.num_calls:
                self.is_done.set()
        self._on_record(record)

    def _ready_after(self, run: Run, number: int) -> list[int]:
        ready = []
        with self._lock:
            missing = self._num_missing[run]
            for following in run.followers[number]:
                missing[following] -= 1
                if not missing[following]:
                    ready.append(following)
        return ready
