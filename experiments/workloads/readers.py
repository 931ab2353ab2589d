"""Traces of others as workloads: Mooncake's, and AIPerf's ``dag_jsonl``.

A trace that has a broken line is not read at all; the error names the lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.workloads.base import Call, Part, Prompts, Run, Workload

MOONCAKE_BLOCK = 512  # tokens that a hash id stands for
CHARS_PER_TOKEN = 4  # of messages, whose text is replaced by random tokens
DEFAULT_OUTPUT = 128  # tokens, where a turn does not say
MAX_SHOWN = 5  # broken lines


class TraceError(ValueError):
    """A file is no trace."""


class _LineError(ValueError):
    """What is wrong with one line."""


def read_trace(path: Path, vocab_size: int, seed: int = 0) -> Workload:
    """Read a trace, of whichever kind its first line is.

    Raises:
        TraceError: the file cannot be read, is of neither kind, or has broken lines.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise TraceError(f"{path} is empty")
    prompts = Prompts(seed, vocab_size)
    is_dag = '"turns"' in lines[0][1]
    records, broken = [], []
    for number, line in lines:
        try:
            records.append((number, _dag_line(line) if is_dag else _mooncake_line(line)))
        except _LineError as error:
            broken.append(f"line {number}: {error}")
    if not broken:
        try:
            runs = tuple((_dag_runs if is_dag else _mooncake_runs)(records, prompts))
        except _LineError as error:
            broken.append(str(error))
    if broken:
        more = f"; and {len(broken) - MAX_SHOWN} more" if len(broken) > MAX_SHOWN else ""
        raise TraceError(f"{path}: {'; '.join(broken[:MAX_SHOWN])}{more}")
    return Workload(path.name, runs)


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise _LineError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _LineError("not an object")
    return data


def _count(data: dict[str, Any], key: str, default: int | None = None, low: int = 1) -> int:
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise _LineError(f"{key} must be a whole number of at least {low}")
    return value


def _seconds(data: dict[str, Any], key: str) -> float:
    value = data.get(key) or 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise _LineError(f"{key} must be milliseconds of at least 0")
    return value / 1e3


def _mooncake_line(line: str) -> dict[str, Any]:
    data = _object(line)
    length = _count(data, "input_length")
    hashes = data.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(isinstance(one, int | str) for one in hashes):
        raise _LineError("hash_ids must be a list of numbers or strings")
    if hashes and not (len(hashes) - 1) * MOONCAKE_BLOCK < length <= len(hashes) * MOONCAKE_BLOCK:
        raise _LineError(
            f"{len(hashes)} hash_ids of {MOONCAKE_BLOCK} tokens do not fit an input of {length}"
        )
    return {
        "start_s": _seconds(data, "timestamp"),
        "length": length,
        "output": _count(data, "output_length", DEFAULT_OUTPUT),
        "hashes": hashes,
    }


def _mooncake_runs(records: list[tuple[int, dict[str, Any]]], prompts: Prompts) -> Iterator[Run]:
    """A run of one call for each line; of agents and workflows such a trace says nothing."""
    first_s = min(record["start_s"] for _, record in records)
    for number, record in records:
        length, hashes = record["length"], record["hashes"]
        parts: list[Part] = []
        for place, name in enumerate(hashes):
            count = min(MOONCAKE_BLOCK, length - place * MOONCAKE_BLOCK)
            parts.append(prompts.named(count, f"{name}", str(count)))
        call = Call("trace", tuple(parts) or (prompts.new(length),), 0, record["output"])
        yield Run("trace", f"line{number}", None, (call,), record["start_s"] - first_s)


def _dag_line(line: str) -> dict[str, Any]:
    data = _object(line)
    if not isinstance(data.get("session_id"), str) or not data["session_id"]:
        raise _LineError("session_id must be a string")
    turns = data.get("turns")
    if not isinstance(turns, list) or not turns:
        raise _LineError("turns must be a list that is not empty")
    return {
        "session": data["session_id"],
        "turns": [_turn(turn, place, len(turns)) for place, turn in enumerate(turns)],
        "before": _names(data.get("pre_session_spawns", []), "pre_session_spawns"),
    }


def _turn(turn: Any, place: int, num_turns: int) -> dict[str, Any]:
    if not isinstance(turn, dict) or not isinstance(turn.get("messages"), list):
        raise _LineError(f"turns[{place}].messages must be a list")
    spawns: list[tuple[str, int]] = []
    for spawn in turn.get("spawns", []):
        if isinstance(spawn, str):
            spawns.append((spawn, place + 1))
        elif isinstance(spawn, dict):
            join_at = place + 1 if spawn.get("join_at") is None else spawn["join_at"]
            if not isinstance(join_at, int) or not place < join_at <= num_turns:
                raise _LineError(f"turns[{place}].spawns: join_at must be a later turn")
            spawns += [(name, join_at) for name in _names(spawn.get("children"), "children")]
        else:
            raise _LineError(f"turns[{place}].spawns must be names or objects")
    forks = [one.get("child") if isinstance(one, dict) else one for one in turn.get("forks", [])]
    return {
        "messages": [_num_tokens(message, place) for message in turn["messages"]],
        "output": _count(turn, "max_tokens", DEFAULT_OUTPUT),
        "pause_s": _seconds(turn, "delay"),
        "forks": _names(forks, "forks"),
        "spawns": spawns,
    }


def _names(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _LineError(f"{key} must be a list of session ids")
    return value


def _num_tokens(message: Any, place: int) -> tuple[str, int]:
    """Role and tokens of a message, as long as its text."""
    if not isinstance(message, dict) or "role" not in message:
        raise _LineError(f"turns[{place}].messages must be objects with a role")
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content)
    return str(message["role"]), 4 + -(-len(text) // CHARS_PER_TOKEN)


def _dag_runs(records: list[tuple[int, dict[str, Any]]], prompts: Prompts) -> Iterable[Run]:
    """A run for each session that no other begins, with all that come of it."""
    sessions: dict[str, dict[str, Any]] = {}
    for number, record in records:
        if record["session"] in sessions:
            raise _LineError(f"line {number}: session {record['session']!r} is there twice")
        sessions[record["session"]] = record
    parent: dict[str, str] = {}
    for number, record in records:
        children = list(record["before"])
        for turn in record["turns"]:
            children += [*turn["forks"], *(name for name, _ in turn["spawns"])]
        for child in children:
            if child not in sessions:
                raise _LineError(f"line {number}: there is no session {child!r}")
            if child in parent or child == record["session"]:
                raise _LineError(f"line {number}: session {child!r} is begun twice")
            parent[child] = record["session"]
    roots = [name for name in sessions if name not in parent]
    runs = [Run(root, root, None, _Tree(sessions, prompts).calls_of(root)) for root in roots]
    if sum(len(run.calls) for run in runs) != sum(len(s["turns"]) for s in sessions.values()):
        raise _LineError("sessions begin each other in a circle")
    return runs


class _Tree:
    """The calls of a session and of those that it begins."""

    def __init__(self, sessions: dict[str, dict[str, Any]], prompts: Prompts) -> None:
        self._sessions, self._prompts = sessions, prompts
        self._calls: list[Call] = []

    def calls_of(self, root: str) -> tuple[Call, ...]:
        # A stack of those to be added, not recursion: sessions may begin one another in a long row.
        pending: list[tuple[str, tuple[Part, ...], tuple[int, ...]]] = [(root, (), ())]
        joins: dict[str, tuple[str, int]] = {}  # a session -> who waits for it, at which turn
        first_of: dict[str, int] = {}
        last_of: dict[str, int] = {}
        while pending:
            name, history, after = pending.pop()
            first_of[name] = len(self._calls)
            session = self._sessions[name]
            pending += [(child, (), after) for child in session["before"]]
            for place, turn in enumerate(session["turns"]):
                sizes = turn["messages"]
                new = tuple(self._prompts.new(size) for _, size in sizes)
                fixed = sum(size for role, size in sizes if role == "system") if not place else 0
                history = (*history, *new)
                number = len(self._calls)
                self._calls.append(
                    Call(
                        name,
                        history or (np.zeros(1, np.int32),),
                        fixed if not place else self._calls[first_of[name]].num_fixed,
                        turn["output"],
                        after,
                        pause_s=turn["pause_s"],
                        session=name,
                        is_last=place == len(session["turns"]) - 1,
                    )
                )
                history, after = (*history, number), (number,)
                pending += [(child, history, after) for child in turn["forks"]]
                for child, join_at in turn["spawns"]:
                    pending.append((child, (), after))
                    if join_at < len(session["turns"]):
                        joins[child] = name, join_at
            last_of[name] = len(self._calls) - 1
        for child, (name, turn_number) in joins.items():
            at = first_of[name] + turn_number
            call = self._calls[at]
            fields = {**vars(call), "after": (*call.after, last_of[child])}
            self._calls[at] = Call(**fields)
        return tuple(self._calls)
