"""What an engine did when: a file for Perfetto (ui.perfetto.dev) or chrome://tracing.

    engine   steps            |==64==|==64==|=3=|=3=|=3=|
             host to device      |agent2|
             device to host   |agent1|
             stall                              |..|
    agents   planner, coder   one slice a call, with its time in the queue, the load, the prompt

The format is Chrome's trace events, a JSON array that stays readable when it is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.engine.scheduler import StepPlan
from kvflow_jax.errors import ConfigError
from kvflow_jax.requests.request import Request

_ENGINE, _AGENTS = 1, 2  # processes, as the viewer has it
_STEPS, _LOADS, _SAVES, _STALLS = 1, 2, 3, 4  # threads of the engine
_LANES = {
    _STEPS: "steps",
    _LOADS: "host to device",
    _SAVES: "device to host",
    _STALLS: "stall",
}


class Tracer(Protocol):
    """Is told, after the fact, of everything that took time. Seconds of the engine's clock."""

    def step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None: ...

    def moved(self, transfers: Iterable[Transfer]) -> None: ...

    def stalled(self, start_s: float, end_s: float) -> None: ...

    def finished(self, request: Request, now: float) -> None: ...

    def close(self) -> None: ...


class NoTrace:
    """Listens to nothing."""

    def step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None: ...

    def moved(self, transfers: Iterable[Transfer]) -> None: ...

    def stalled(self, start_s: float, end_s: float) -> None: ...

    def finished(self, request: Request, now: float) -> None: ...

    def close(self) -> None: ...


class ChromeTrace:
    """Writes trace events to a file as they come.

    Args:
        path: is overwritten.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            self._file = Path(path).open("w")  # noqa: SIM115 (it stays open)
        except OSError as error:
            raise ConfigError(f"the trace cannot be written to {path}: {error}") from None
        self._file.write("[\n")
        self._separator = ""
        self._last_step_s = 0.0
        self._name("process_name", _ENGINE, 0, "engine")
        self._name("process_name", _AGENTS, 0, "agents")
        for lane, name in _LANES.items():
            self._name("thread_name", _ENGINE, lane, name)

    def step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None:
        # Dispatched while the one before ran: the device began when that was done.
        start_s = max(dispatched_s, self._last_step_s)
        self._last_step_s = finished_s
        num_prompt = sum(plan.prefill_lengths)
        num_decode = len(plan.chunks) - len(plan.prefill_lengths)
        what = {
            "prompt_tokens": num_prompt,
            "decode_rows": num_decode,
            "requests": [chunk.request.id for chunk in plan.chunks],
        }
        self._slice(_ENGINE, _STEPS, f"{num_prompt}+{num_decode}", start_s, finished_s, what)

    def moved(self, transfers: Iterable[Transfer]) -> None:
        for transfer in transfers:
            lane = _LOADS if transfer.direction is Direction.LOAD else _SAVES
            is_prefetch = getattr(transfer.job, "is_prefetch", False)
            name = "prefetch" if is_prefetch else "load" if lane == _LOADS else "backup"
            queued_s = max(transfer.started_s - transfer.submitted_s, 0.0)
            what: dict[str, Any] = {"bytes": transfer.nbytes, "queued_ms": queued_s * 1e3}
            if transfer.error is not None:
                name, what["error"] = f"{name} failed", str(transfer.error)
            self._slice(_ENGINE, lane, name, transfer.started_s, transfer.finished_s, what)

    def stalled(self, start_s: float, end_s: float) -> None:
        self._slice(_ENGINE, _STALLS, "stall", start_s, end_s, {})

    def finished(self, request: Request, now: float) -> None:
        hints = request.hints
        agent = (hints.agent_id if hints is not None else None) or "(no agent)"
        what = {
            "request": request.id,
            "workflow": hints.workflow_id if hints is not None else None,
            "prompt_tokens": request.num_prompt,
            "cached_tokens": request.num_cached or 0,
            "from_host": request.num_cached_host,
            "output_tokens": request.num_output,
            "finish_reason": request.finish_reason,
        }
        started_s, first_s = request.first_scheduled_s, request.first_token_s
        self._async(agent, request.id, request.arrival_s, now, what)
        if started_s is not None:
            self._async("queue and load", request.id, request.arrival_s, started_s, {})
            self._async("prompt", request.id, started_s, first_s or now, {})
        if first_s is not None:
            self._async("decode", request.id, first_s, now, {})

    def close(self) -> None:
        """Finish the file. Closing twice is fine."""
        if not self._file.closed:
            self._file.write("\n]\n")
            self._file.close()

    def _slice(
        self, process: int, lane: int, name: str, start_s: float, end_s: float, what: Any
    ) -> None:
        self._write(
            name=name,
            ph="X",
            pid=process,
            tid=lane,
            ts=start_s * 1e6,
            dur=max(end_s - start_s, 0.0) * 1e6,
            args=what,
        )

    def _async(self, name: str, request_id: int, start_s: float, end_s: float, what: Any) -> None:
        """Calls of one agent overlap: each has a track of its own."""
        common = {"cat": "call", "name": name, "id": request_id, "pid": _AGENTS, "tid": 0}
        self._write(**common, ph="b", ts=start_s * 1e6, args=what)
        self._write(**common, ph="e", ts=end_s * 1e6)

    def _name(self, kind: str, process: int, lane: int, name: str) -> None:
        self._write(name=kind, ph="M", pid=process, tid=lane, args={"name": name})

    def _write(self, **event: Any) -> None:
        self._file.write(self._separator + json.dumps(event, separators=(",", ":")))
        self._separator = ",\n"
