"""Read public trace formats as workloads: Mooncake's, and AIPerf's ``dag_jsonl``.

A trace with a broken line is refused; the error names all broken lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.workloads.base import Prompts, Run, Workload
from experiments.workloads.dag_jsonl import dag_runs
from experiments.workloads.lines import Faults, json_object
from experiments.workloads.mooncake import PROMPTS, mooncake_runs

# Reads records by line number, and adds their faults to ``Faults``.
Reader = Callable[[Mapping[int, dict[str, Any]], Prompts, Faults], list[Run]]


class TraceError(ValueError):
    """A file is not a valid trace."""


def read_trace(path: Path, vocab_size: int, seed: int = 0) -> Workload:
    """Read a trace; the first line of a known format decides the format.

    Raises:
        TraceError: the file cannot be read, has neither format, or has broken lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
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
            faults.add(number, f"has neither turns, as in dag_jsonl, nor {', '.join(PROMPTS)}")
        raise TraceError(f"{path}: {faults}")
    runs = read(records, Prompts(seed, vocab_size), faults)
    if faults:
        raise TraceError(f"{path}: {faults}")
    return Workload(path.name, tuple(runs))


def _reader(record: dict[str, Any]) -> Reader | None:
    if "turns" in record or "orchestrator" in record:
        return dag_runs
    return mooncake_runs if any(key in record for key in PROMPTS) else None
