"""Measure an engine's decode steps: their time, the host's CPU time, the device's idle time."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvflow_jax import LLM, SamplingParams


@dataclass(frozen=True, slots=True)
class DecodeFigures:
    """Figures of decode steps, milliseconds.

    Attributes:
        step_ms: median time of a step.
        host_cpu_ms: median CPU time of the engine's thread a step.
        device_idle_ms: mean time from the end of a step to the dispatch of the next.
    """

    step_ms: float
    host_cpu_ms: float
    device_idle_ms: float


def measure_decode(
    llm: LLM, batch_size: int, context_len: int, num_steps: int = 40
) -> DecodeFigures:
    """Measure ``num_steps`` steps of requests whose contexts have about ``context_len`` tokens."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(
        0, llm.config.vocab_size, (batch_size, context_len - num_steps // 2)
    ).tolist()
    # Cache the prompts first, so that all requests decode together.
    llm.generate(prompts, SamplingParams(max_tokens=1), progress=False)
    with _StepRecorder(llm) as recorder:
        params = SamplingParams(max_tokens=num_steps + 20, temperature=0.0, ignore_eos=True)
        llm.generate(prompts, params, progress=False)
    # Keep the steps in which all requests decode and none computes its prompt.
    steps = [step for step in recorder.steps if step.num_decode == batch_size and step.is_decode]
    steps = steps[2 : num_steps + 2]
    ready = np.array([step.ready_s for step in steps])
    submitted = np.array([step.submitted_s for step in steps])
    cpu = np.array([step.cpu_s for step in steps])
    return DecodeFigures(
        step_ms=float(np.median(np.diff(ready))) * 1e3,
        host_cpu_ms=float(np.median(np.diff(cpu))) * 1e3,
        device_idle_ms=float(np.maximum(submitted[1:] - ready[:-1], 0).mean()) * 1e3,
    )


class _Step:
    def __init__(self, batch: Any) -> None:
        self.num_decode = int((batch.query_len[: batch.shape.num_decode] > 0).sum())
        self.is_decode = not batch.query_len[batch.shape.num_decode :].any()
        self.submitted_s = self.cpu_s = self.ready_s = 0.0


class _StepRecorder:
    """Records when each step is dispatched and when its tokens are ready."""

    def __init__(self, llm: LLM) -> None:
        self.steps: list[_Step] = []
        self._runner: Any = llm.runner
        self._submit = llm.runner.submit
        self._handles: queue.SimpleQueue[tuple[_Step, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> _StepRecorder:
        self._runner.submit = self._recorded_submit
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        del self._runner.submit
        self._handles.put(None)
        self._thread.join()

    def _recorded_submit(self, batch: Any) -> Any:
        step = _Step(batch)
        handle = self._submit(batch)
        step.submitted_s, step.cpu_s = time.perf_counter(), time.thread_time()
        self.steps.append(step)
        self._handles.put((step, handle))
        return handle

    def _wait(self) -> None:
        while (item := self._handles.get()) is not None:
            step, handle = item
            handle.result()
            step.ready_s = time.perf_counter()
