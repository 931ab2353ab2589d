"""Watches an engine's decode steps: their length, the host's share, the device's gaps."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvflow_jax import LLM, SamplingParams

STEPS = 40  # looked at, once all requests decode


@dataclass(frozen=True, slots=True)
class DecodeFigures:
    """Medians over steps, milliseconds."""

    step_ms: float
    host_cpu_ms: float  # CPU time of the engine's thread
    device_idle_ms: float  # from the end of a step to the next step's dispatch, mean


def watch_decode(llm: LLM, batch_size: int, context_len: int, seed: int = 0) -> DecodeFigures:
    """Let ``batch_size`` requests decode around ``context_len`` tokens of context."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(
        0, llm.config.vocab_size, (batch_size, context_len - STEPS // 2)
    ).tolist()
    # Once ahead, so that all find their prompts cached and decode together.
    llm.generate(prompts, SamplingParams(max_tokens=1), progress=False)
    with _Watch(llm) as watch:
        params = SamplingParams(max_tokens=STEPS + 20, temperature=0.0, ignore_eos=True)
        llm.generate(prompts, params, progress=False)
    # Steps in which all of them decode and none has a prompt left.
    steps = [step for step in watch.steps if step.num_decode == batch_size and step.is_decode]
    steps = steps[2 : STEPS + 2]
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


class _Watch:
    """Notes when each step is dispatched and when its tokens are there."""

    def __init__(self, llm: LLM) -> None:
        self.steps: list[_Step] = []
        self._runner: Any = llm.runner
        self._submit = llm.runner.submit
        self._handles: queue.SimpleQueue[tuple[_Step, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> _Watch:
        self._runner.submit = self._watched
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        del self._runner.submit
        self._handles.put(None)
        self._thread.join()

    def _watched(self, batch: Any) -> Any:
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
