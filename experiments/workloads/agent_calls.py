"""Read the calls of agents as text: ``{"timestamp", "input", "output", "session_id"}`` a line.

The calls of a session follow each other in the order of their timestamps, in microseconds, without
pauses: the traces have no times of tools, and no names of agents, so calls go without hints. An
answer that a later input of the session repeats word for word is read as that answer's tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from experiments.workloads.base import Call, Part, Prompts, Run
from experiments.workloads.lines import Faults, LineError
from experiments.workloads.messages import text_tokens

FIELDS = ("input", "output", "session_id")
MIN_REPEATED = 16  # characters of an answer that is looked for in later inputs


def agent_call_runs(
    records: Mapping[int, dict[str, Any]], prompts: Prompts, faults: Faults
) -> list[Run]:
    """Return a run for each session.

    Args:
        records: parsed lines, by line number.
        faults: collects the faults of the lines; with any, no runs are returned.
    """
    sessions: defaultdict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for line, record in records.items():
        with faults.of(line):
            given, answer, session = (_text(record, key) for key in FIELDS)
            sessions[session].append((_timestamp(record), given, answer))
    if faults:
        return []
    return [
        Run("agents", session, None, _calls(sorted(calls, key=lambda call: call[0]), prompts))
        for session, calls in sessions.items()
    ]


def _calls(texts: list[tuple[float, str, str]], prompts: Prompts) -> tuple[Call, ...]:
    calls: list[Call] = []
    answers: list[str] = []
    for number, (_, given, answer) in enumerate(texts):
        parts = _parts(given, answers, prompts.vocab_size)
        num_output = len(text_tokens(answer, prompts.vocab_size))
        after = (number - 1,) if number else ()
        is_last = number == len(texts) - 1
        calls.append(Call("", parts, 0, max(1, num_output), after, is_last=is_last))
        answers.append(answer)
    return tuple(calls)


def _parts(given: str, answers: list[str], vocab_size: int) -> tuple[Part, ...]:
    """Split an input at the answers that it repeats, in their order."""
    parts: list[Part] = []
    start = 0
    for number, answer in enumerate(answers):
        found = given.find(answer, start) if len(answer) >= MIN_REPEATED else -1
        if found < 0:
            continue
        if found > start:
            parts.append(text_tokens(given[start:found], vocab_size))
        parts.append(number)
        start = found + len(answer)
    # A prompt has something to answer to: it does not end with an answer. An empty input is one of
    # which the trace has no text.
    rest = given[start:] or " "
    return (*parts, text_tokens(rest, vocab_size))


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or (not value and key == "session_id"):
        raise LineError(f"{key} must be text")
    return value


def _timestamp(record: dict[str, Any]) -> float:
    value = record.get("timestamp", 0)
    # The comparison also rejects NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e19:
        raise LineError("timestamp must be microseconds that are not negative")
    return float(value)
