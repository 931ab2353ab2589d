"""Read AIPerf's ``dag_jsonl``: one session a line, whose turns fork and spawn other sessions.

A fork continues its parent's conversation; a spawned session starts without history. A session that
is named in several places starts in each of them. An ``orchestrator`` sends no requests; it starts
other sessions in sequential ``rounds``. Sessions that no other starts run once each, from time 0,
where AIPerf samples from them as often as configured.

Read but ignored: the distribution of think times (the median is used), ``model``, ``extra``, and
all unknown fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from experiments.workloads.base import Prompts, Run
from experiments.workloads.call_graph import call_graph
from experiments.workloads.conversations import Conversation, Turn, calls_of
from experiments.workloads.lines import (
    DEFAULT_OUTPUT,
    Faults,
    LineError,
    as_list,
    as_object,
    format_ranges,
    read_count,
    read_seconds,
    session_ids,
)
from experiments.workloads.messages import read_messages, read_tools

MAX_CALLS = 1_000_000  # of a file; nested spawns may double their number from line to line
# Context mode: whether a prompt includes the previous turns, and their generated outputs.
CONTEXT_MODES = {
    "deltas_without_responses": (True, True),
    "deltas_with_responses": (True, False),
    "message_array_with_responses": (False, False),
}
ORCHESTRATOR_KEYS = ("spawns", "rounds", "think_time_ms")


def dag_runs(records: Mapping[int, dict[str, Any]], prompts: Prompts, faults: Faults) -> list[Run]:
    """Return a run for each session that no other starts, with all its descendants.

    Args:
        records: parsed lines, by line number.
        faults: collects the faults of the lines; with any, no runs are returned.
    """
    lines: dict[str, int] = {}
    sessions: dict[str, Conversation] = {}
    is_complete = not faults  # True while the session ids of all lines are known
    for line, record in records.items():
        name = record.get("session_id")
        if not isinstance(name, str) or not name:
            faults.add(line, "session_id must be a string")
            is_complete = False
        elif name in lines:
            faults.add(line, f"session {name!r} is defined twice")
        else:
            lines[name] = line
            with faults.of(line):
                sessions[name] = _session(record, prompts.vocab_size)
    if is_complete:
        for name, session in sessions.items():
            for child in dict.fromkeys(session.children()):
                if child not in lines:
                    faults.add(lines[name], f"there is no session {child!r}")
    order = _children_first(sessions, lines, faults)
    if faults:
        return []
    started = {child for session in sessions.values() for child in session.children()}
    roots = [name for name in sessions if name not in started]
    num_calls: dict[str, int] = {}
    for name in order:
        session = sessions[name]
        num_calls[name] = session.num_calls + sum(map(num_calls.__getitem__, session.children()))
    if sum(num_calls[root] for root in roots) > MAX_CALLS:
        largest = max(roots, key=num_calls.__getitem__)
        faults.add(lines[largest], f"with its descendants the file has more than {MAX_CALLS} calls")
        return []
    calls = {root: calls_of(root, sessions) for root in roots}
    return [Run(root, root, call_graph(calls[root]), calls[root]) for root in roots]


def _children_first(
    sessions: Mapping[str, Conversation], lines: Mapping[str, int], faults: Faults
) -> list[str]:
    """Return session ids, children before parents; cycles are added to ``faults``."""
    children = {name: set(session.children()) & set(sessions) for name, session in sessions.items()}
    while True:
        try:
            return list(TopologicalSorter(children).static_order())
        except CycleError as error:
            cycle = set(error.args[1])
            first = min(cycle, key=lines.__getitem__)
            where = format_ranges(sorted(lines[name] for name in cycle))
            faults.add(lines[first], f"sessions start each other in a cycle, lines {where}")
            for name in cycle:  # to find the next cycle
                del children[name]


def _session(data: dict[str, Any], vocab_size: int) -> Conversation:
    mode = data.get("context_mode")
    mode = "deltas_without_responses" if mode is None else str(mode).lower()
    if mode not in CONTEXT_MODES:
        raise LineError(f"context_mode must be one of {', '.join(CONTEXT_MODES)}")
    has_history, has_answers = CONTEXT_MODES[mode]
    turns = as_list(data.get("turns"), "turns")
    before = tuple(session_ids(data.get("pre_session_spawns"), "pre_session_spawns"))
    is_orchestrator = data.get("orchestrator")
    if not isinstance(is_orchestrator, bool | None):
        raise LineError("orchestrator must be true or false")
    if is_orchestrator:
        if turns or before:
            raise LineError("an orchestrator has no turns and no pre_session_spawns")
        return Conversation(_rounds(data))
    for key in ORCHESTRATOR_KEYS:
        if data.get(key) not in (None, []):
            raise LineError(f"{key} requires an orchestrator")
    if not turns:
        raise LineError("turns must be a non-empty list")
    read = tuple(_turn(turn, index, len(turns), vocab_size) for index, turn in enumerate(turns))
    return Conversation(read, before, has_history, has_answers)


def _rounds(data: dict[str, Any]) -> tuple[Turn, ...]:
    """Return turns without messages; each waits for the sessions that the previous one started."""
    spawns = session_ids(data.get("spawns"), "spawns")
    think_s = read_seconds(data, "think_time_ms") or 0.0
    rounds = data.get("rounds")
    if rounds is None:
        plans = [(spawns, think_s)]
    elif isinstance(rounds, list):
        if spawns:
            raise LineError("spawns must be in the rounds if rounds is a list")
        plans = []
        for index, plan in enumerate(rounds):
            where = f"rounds[{index}]"
            own_s = read_seconds(as_object(plan, where), "think_time_ms")
            own = session_ids(plan.get("spawns"), f"{where}.spawns")
            plans.append((own, think_s if own_s is None else own_s))
    else:
        num_rounds = read_count(data, "rounds")
        if num_rounds * max(1, len(spawns)) > MAX_CALLS:
            raise LineError(f"its rounds have more than {MAX_CALLS} calls")
        plans = [(spawns, think_s)] * num_rounds
    if not plans or not all(children for children, _ in plans):
        raise LineError("an orchestrator must have spawns, in each of its rounds")
    turns = [
        Turn(None, pause_s=pause_s, spawns=tuple((child, index + 1) for child in children))
        for index, (children, pause_s) in enumerate(plans)
    ]
    # Without rounds, no turn waits for the spawned sessions.
    return tuple(turns) if rounds is None else (*turns, Turn(None))


def _turn(value: Any, index: int, num_turns: int, vocab_size: int) -> Turn:
    where = f"turns[{index}]"
    turn = as_object(value, where)
    forks = as_list(turn.get("forks"), f"{where}.forks")
    spawns = as_list(turn.get("spawns"), f"{where}.spawns")
    return Turn(
        read_messages(turn.get("messages"), f"{where}.messages", vocab_size),
        read_tools(turn.get("tools"), f"{where}.tools", vocab_size),
        read_count(turn, "max_tokens", DEFAULT_OUTPUT),
        read_seconds(turn, "delay") or 0.0,
        tuple(_fork(fork, index == num_turns - 1, f"{where}.forks") for fork in forks),
        tuple(
            pair
            for spawn in spawns
            for pair in _spawned(spawn, index, num_turns, f"{where}.spawns")
        ),
    )


def _fork(value: Any, is_at_end: bool, where: str) -> str:
    fork = value if isinstance(value, dict) else {"child": value}
    child, is_background = fork.get("child"), fork.get("background")
    if not isinstance(child, str) or not isinstance(is_background, bool | None):
        raise LineError(f"{where} must be session ids, or objects with child and background")
    if not is_background and not is_at_end:
        raise LineError(f"{where}: only the last turn may fork, unless background is true")
    return child


def _spawned(value: Any, index: int, num_turns: int, where: str) -> list[tuple[str, int]]:
    """Return the sessions that an entry starts, and the turn that waits for each."""
    if isinstance(value, str):
        return [(value, index + 1)]
    if not isinstance(value, dict):
        raise LineError(f"{where} must be session ids, or objects with children and join_at")
    children = session_ids(value.get("children"), f"{where}: children")
    join_at = value.get("join_at")
    if join_at is None:
        join_at = index + 1
    if not isinstance(join_at, int) or isinstance(join_at, bool) or join_at <= index:
        raise LineError(f"{where}: join_at must be a later turn")
    if join_at > num_turns:
        raise LineError(f"{where}: join_at is past the last turn")
    return [(child, join_at) for child in children]
