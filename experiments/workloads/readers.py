"""Read public trace formats as workloads.

Lines of JSON: Mooncake's, AIPerf's ``dag_jsonl``, and calls of agents as text. A file of JSON, or a
folder of them: *weka* sessions. A trace with a broken line is refused; the error names all broken
lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.workloads.agent_calls import FIELDS, agent_call_runs
from experiments.workloads.base import Prompts, Run, Workload
from experiments.workloads.dag_jsonl import dag_runs
from experiments.workloads.lines import Faults, LineError, json_object
from experiments.workloads.mooncake import PROMPTS, mooncake_runs
from experiments.workloads.weka import weka_run

# Reads records by line number, and adds their faults to ``Faults``.
Reader = Callable[[Mapping[int, dict[str, Any]], Prompts, Faults], list[Run]]


class TraceError(ValueError):
    """A file is not a valid trace."""


def read_trace(path: Path, vocab_size: int, seed: int = 0) -> Workload:
    """Read a trace; the first line of a known format decides the format.

    Args:
        path: of a file, or of a folder of *weka* sessions, all ``.json`` files in it.

    Raises:
        TraceError: the file cannot be read, has no known format, or has broken lines.
    """
    prompts = Prompts(seed, vocab_size)
    if path.is_dir():
        sessions = [_read_session(file, prompts) for file in sorted(path.glob("*.json"))]
        if not sessions:
            raise TraceError(f"{path} has no .json files")
        return Workload(path.name, tuple(sessions))
    text = _text_of(path)
    if _session_in(text) is not None:
        return Workload(path.name, (_read_session(path, prompts),))
    # ``splitlines`` would also split at characters that JSON strings may contain.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise TraceError(f"{path} is empty")
    faults = Faults()
    records: dict[int, dict[str, Any]] = {}
    for number, line in lines:
        with faults.of(number):
            records[number] = json_object(line)
    read = next((reader for reader in map(_reader, records.values()) if reader is not None), None)
    if read is None:
        for number in records:
            known = ", ".join((*PROMPTS, *FIELDS))
            faults.add(number, f"has neither turns, as in dag_jsonl, nor {known}")
        raise TraceError(f"{path}: {faults}")
    runs = read(records, prompts, faults)
    if faults:
        raise TraceError(f"{path}: {faults}")
    return Workload(path.name, tuple(runs))


def _reader(record: dict[str, Any]) -> Reader | None:
    if "turns" in record or "orchestrator" in record:
        return dag_runs
    if all(key in record for key in FIELDS):
        return agent_call_runs
    return mooncake_runs if any(key in record for key in PROMPTS) else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None


def _session_in(text: str) -> dict[str, Any] | None:
    """Return the *weka* session that a text is; None if it is none."""
    if '"requests"' not in text:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and "requests" in data else None


def _read_session(path: Path, prompts: Prompts) -> Run:
    session = _session_in(_text_of(path))
    if session is None:
        raise TraceError(f"{path} is no session: it must be a JSON object with requests")
    try:
        return weka_run(session, prompts)
    except LineError as error:
        raise TraceError(f"{path}: {error}") from None
