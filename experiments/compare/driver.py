"""Runs a workload against any server in a closed loop: a call starts once its inputs end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from experiments.compare.call_hints import HintsOf, declared
from experiments.workloads.base import Run, Workload
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import KVFlowError
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams

Submitted = tuple[Run, int]  # a run, and the number of one of its calls


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Measurements of one call. Times are seconds of the server's clock."""

    tenant: str
    workflow_id: str
    agent: str
    number: int  # among the calls of its run
    round: int
    start_s: float
    first_token_s: float
    end_s: float
    num_prompt: int
    num_cached: int  # prompt tokens from the cache
    num_host: int  # cached tokens that were loaded from the host for this call
    num_computed: int  # prompt tokens, including those computed again after a preemption
    num_fixed_recomputed: int  # tokens of the fixed prefix that were not cached

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

    def submit(self, spec: RequestSpec, on_output: Callable[[Output], None]) -> object: ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call ``callback`` after this many seconds of the server's clock."""


class RealServer:
    """An engine on its thread, on the wall clock."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self.submit = engine.submit

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, callback)
        timer.daemon = True
        timer.start()


class Driver:
    """Runs a workload. The last output of a call submits the calls that waited for it.

    Args:
        hints_of: what a call says about itself. Whatever that is, its system prompt is known to be
            one, as in a chat.
        on_record: called with the record of each call, in the thread that ends it.

    Attributes:
        records: records of calls, in the order in which they ended.
        submitted: calls in the order of submission, which is the order of request ids.
        warm_stats: the server's counters at the start of the first call after round 0.
        is_done: set when the last call has ended, or any call has failed.
    """

    def __init__(
        self,
        workload: Workload,
        server: Server,
        *,
        hints_of: HintsOf = declared,
        on_record: Callable[[CallRecord], object] = lambda _: None,
    ) -> None:
        self.records: list[CallRecord] = []
        self.submitted: list[Submitted] = []
        self.warm_stats: EngineStats | None = None
        self.is_done = threading.Event()
        self._workload = workload
        self._server = server
        self._hints_of = hints_of
        self._on_record = on_record
        self._lock = threading.Lock()  # guards ``records`` and ``_num_missing``
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
        """Start every run at its arrival time."""
        for run in self._workload.runs:
            for number, call in enumerate(run.calls):
                if not call.after:
                    self._submit_later(run, number, run.start_s + call.pause_s)

    def wait(self, timeout_s: float | None = None) -> list[CallRecord]:
        """Wait for the last call; return the records.

        Raises:
            KVFlowError: a call failed.
            TimeoutError: calls are left after ``timeout_s`` seconds.
        """
        if not self.is_done.wait(timeout_s):
            raise TimeoutError(
                f"{self._workload.name}: {len(self.records)} of {self._workload.num_calls} calls "
                f"have ended after {timeout_s} s"
            )
        if self._error is not None:
            raise self._error
        return self.records

    def _submit_later(self, run: Run, number: int, seconds: float) -> None:
        if seconds > 0:
            self._server.call_later(seconds, partial(self._submit, run, number))
        else:
            self._submit(run, number)

    def _submit(self, run: Run, number: int) -> None:
        call = run.calls[number]
        if call.round and self.warm_stats is None:
            self.warm_stats = self._server.stats
        hints = self._hints_of(run, call)
        prompt = np.concatenate(
            [
                np.array(self._answers[run, part], np.int32) if isinstance(part, int) else part
                for part in call.parts
            ]
        )
        answer = self._answers.get((run, number))

        def on_output(output: Output) -> None:
            if answer is not None:
                answer.extend(output.token_ids)
            if output.finish_reason is not None:
                self._end(run, number, output)

        params = SamplingParams(max_tokens=call.num_output, temperature=0.0, ignore_eos=True)
        num_system = call.num_fixed if call.agent else None
        spec = RequestSpec(prompt, params, user=run.tenant, hints=hints, num_system=num_system)
        self.submitted.append((run, number))
        try:
            self._server.submit(spec, on_output)
        except KVFlowError as error:
            self._fail(error)

    def _end(self, run: Run, number: int, output: Output) -> None:
        # This runs on the engine's thread, where an exception would go unseen: keep the error.
        if output.error is not None:
            self._fail(output.error)
            return
        self._record(run, number, output)
        for following in self._ready_after(run, number):
            self._submit_later(run, following, run.calls[following].pause_s)

    def _fail(self, error: KVFlowError) -> None:
        self._error = error
        self.is_done.set()

    def _record(self, run: Run, number: int, output: Output) -> None:
        call, stats = run.calls[number], output.stats
        assert stats is not None
        assert stats.first_token_s is not None
        record = CallRecord(
            tenant=run.tenant,
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
