"""A trace of the engine, for Perfetto (ui.perfetto.dev) or chrome://tracing.

    engine   steps            |==64==|==64==|=3=|=3=|=3=|
             host to device      |load|
             device to host   |backup|
             stall                              |..|
    agents   planner, coder   one slice per call, with slices for queue and load, prompt, decode

The format is Chrome's trace events: a JSON array, which viewers can read even if it is truncated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.errors import ConfigError
from kvflow_jax.requests.request import Request

log = logging.getLogger(__name__)

# Process ids of the trace format.
_ENGINE, _AGENTS = 1, 2
# Thread ids of the engine process; the viewer shows a track for each.
_STEPS, _LOADS, _OFFLOADS, _STALLS = 1, 2, 3, 4
_TRACKS = {
    _STEPS: "steps",
    _LOADS: "host to device",
    _OFFLOADS: "device to host",
    _STALLS: "stall",
}


class Tracer(Protocol):
    """Receives events after they have ended. Times are seconds of the engine's clock."""

    def on_step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None: ...

    def on_transfers(self, transfers: Iterable[Transfer]) -> None: ...

    def on_stall(self, start_s: float, end_s: float) -> None: ...

    def on_finish(self, request: Request, now: float) -> None: ...

    def close(self) -> None: ...


class NoTrace:
    """A tracer that ignores all events."""

    def on_step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None: ...

    def on_transfers(self, transfers: Iterable[Transfer]) -> None: ...

    def on_stall(self, start_s: float, end_s: float) -> None: ...

    def on_finish(self, request: Request, now: float) -> None: ...

    def close(self) -> None: ...


class ChromeTrace:
    """A tracer that writes each event to a file.

    Args:
        path: the file; an existing file is overwritten.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            self._file = Path(path).open("w")  # noqa: SIM115 (it stays open)
        except OSError as error:
            raise ConfigError(f"the trace cannot be written to {path}: {error}") from None
        self._separator = "[\n"
        self._last_step_s = 0.0
        self._name("process_name", _ENGINE, 0, "engine")
        self._name("process_name", _AGENTS, 0, "agents")
        for track, name in _TRACKS.items():
            self._name("thread_name", _ENGINE, track, name)

    def on_step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None:
        # A step dispatched while the previous step ran started when that step had finished.
        start_s = max(dispatched_s, self._last_step_s)
        self._last_step_s = finished_s
        num_prompt = sum(plan.prefill_lengths)
        num_decode = len(plan.chunks) - len(plan.prefill_lengths)
        args = {
            "prompt_tokens": num_prompt,
            "decode_rows": num_decode,
            "draft_tokens": plan.num_draft_tokens,
            "requests": [chunk.request.id for chunk in plan.chunks],
        }
        self._slice(_ENGINE, _STEPS, f"{num_prompt}+{num_decode}", start_s, finished_s, args)

    def on_transfers(self, transfers: Iterable[Transfer]) -> None:
        for transfer in transfers:
            track = _LOADS if transfer.direction is Direction.LOAD else _OFFLOADS
            is_prefetch = getattr(transfer.job, "is_prefetch", False)
            name = "prefetch" if is_prefetch else "load" if track == _LOADS else "backup"
            queued_s = max(transfer.started_s - transfer.submitted_s, 0.0)
            args: dict[str, Any] = {"bytes": transfer.nbytes, "queued_ms": queued_s * 1e3}
            if transfer.error is not None:
                name, args["error"] = f"{name} failed", str(transfer.error)
            self._slice(_ENGINE, track, name, transfer.started_s, transfer.finished_s, args)

    def on_stall(self, start_s: float, end_s: float) -> None:
        self._slice(_ENGINE, _STALLS, "stall", start_s, end_s, {})

    def on_finish(self, request: Request, now: float) -> None:
        hints = request.hints
        agent = (hints.agent_id if hints is not None else None) or "(no agent)"
        args = {
            "request": request.id,
            "workflow": hints.workflow_id if hints is not None else None,
            "prompt_tokens": request.num_prompt,
            "cached_tokens": request.num_cached or 0,
            "from_host": request.num_cached_host,
            "output_tokens": request.num_output,
            "finish_reason": request.finish_reason,
        }
        started_s, first_s = request.first_scheduled_s, request.first_token_s
        self._async(agent, request.id, request.arrival_s, now, args)
        if started_s is not None:
            self._async("queue and load", request.id, request.arrival_s, started_s, {})
            self._async("prompt", request.id, started_s, first_s or now, {})
        if first_s is not None:
            self._async("decode", request.id, first_s, now, {})

    def close(self) -> None:
        """Complete and close the file. A second call does nothing."""
        if self._file.closed:
            return
        try:
            self._file.write("\n]\n")
            self._file.close()
        except OSError as error:
            self._give_up(error)

    def _slice(
        self, process: int, track: int, name: str, start_s: float, end_s: float, args: Any
    ) -> None:
        """Write a slice of one of the engine's tracks."""
        self._write(
            name=name,
            ph="X",
            pid=process,
            tid=track,
            ts=start_s * 1e6,
            dur=max(end_s - start_s, 0.0) * 1e6,
            args=args,
        )

    def _async(self, name: str, request_id: int, start_s: float, end_s: float, args: Any) -> None:
        """Write a slice of a request; it gets its own track, as calls of one agent overlap."""
        common = {"cat": "call", "name": name, "id": request_id, "pid": _AGENTS, "tid": 0}
        self._write(**common, ph="b", ts=start_s * 1e6, args=args)
        self._write(**common, ph="e", ts=end_s * 1e6)

    def _name(self, kind: str, process: int, track: int, name: str) -> None:
        self._write(name=kind, ph="M", pid=process, tid=track, args={"name": name})

    def _write(self, **event: Any) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(self._separator + json.dumps(event, separators=(",", ":")))
        except OSError as error:
            self._give_up(error)
        self._separator = ",\n"

    def _give_up(self, error: OSError) -> None:
        """Write nothing more: a full disk must not end the engine."""
        log.error("the trace ends here, it cannot be written: %s", error)
        # Closing flushes what could not be written, and fails again.
        with suppress(OSError):
            self._file.close()
