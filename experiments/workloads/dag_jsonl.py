"""AIPerf's ``dag_jsonl``: a session a line, whose turns fork and spawn other sessions.

A fork continues its parent's conversation, a spawned session begins its own. One that is named in
several places is begun in each of them. An ``orchestrator`` sends nothing itself; it begins others,
in ``rounds`` that wait for each other. Sessions that no other begins are played once each, from
the start, where AIPerf draws from them as often as it is told to.

Read and not played: think times that are drawn, of which the median is played; ``model`` and
``extra``; whatever fields are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from experiments.workloads.base import Prompts, Run
from experiments.workloads.conversations import Conversation, Turn, calls_of
from experiments.workloads.lines import (
    DEFAULT_OUTPUT,
    Faults,
    LineError,
    a_list,
    an_object,
    count,
    names,
    ranges,
    seconds,
)
from experiments.workloads.messages import read_messages, read_tools

MAX_CALLS = 1_000_000  # of a file, which may double what it begins from line to line
# Of each context mode: whether a prompt has the turns before, and the live answers to them.
CONTEXT_MODES = {
    "deltas_without_responses": (True, True),
    "deltas_with_responses": (True, False),
    "message_array_with_responses": (False, False),
}
OF_ORCHESTRATORS = ("spawns", "rounds", "think_time_ms")


def dag_runs(records: Mapping[int, dict[str, Any]], prompts: Prompts, faults: Faults) -> list[Run]:
    """A run for each session that no other begins, with all that come of it.

    What is wrong is added to ``faults``, and then there are no runs.

    Args:
        records: by line.
    """
    lines: dict[str, int] = {}
    sessions: dict[str, Conversation] = {}
    is_complete = not faults  # whether the sessions of all lines are known by name
    for line, record in records.items():
        name = record.get("session_id")
        if not isinstance(name, str) or not name:
            faults.add(line, "session_id must be a string")
            is_complete = False
        elif name in lines:
            faults.add(line, f"session {name!r} is there twice")
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
    begun = {child for session in sessions.values() for child in session.children()}
    roots = [name for name in sessions if name not in begun]
    num_calls: dict[str, int] = {}
    for name in order:
        session = sessions[name]
        num_calls[name] = session.num_calls + sum(map(num_calls.__getitem__, session.children()))
    if sum(num_calls[root] for root in roots) > MAX_CALLS:
        largest = max(roots, key=num_calls.__getitem__)
        faults.add(lines[largest], f"with it the file comes to more than {MAX_CALLS} calls")
        return []
    return [Run(root, root, None, calls_of(root, sessions)) for root in roots]


def _children_first(
    sessions: Mapping[str, Conversation], lines: Mapping[str, int], faults: Faults
) -> list[str]:
    """Names of sessions, those that a session begins before it; circles are faults."""
    children = {name: set(session.children()) & set(sessions) for name, session in sessions.items()}
    while True:
        try:
            return list(TopologicalSorter(children).static_order())
        except CycleError as error:
            circle = set(error.args[1])
            first = min(circle, key=lines.__getitem__)
            where = ranges(sorted(lines[name] for name in circle))
            faults.add(lines[first], f"sessions begin each other in a circle, lines {where}")
            for name in circle:  # to find the next
                del children[name]


def _session(data: dict[str, Any], vocab_size: int) -> Conversation:
    mode = data.get("context_mode")
    mode = "deltas_without_responses" if mode is None else str(mode).lower()
    if mode not in CONTEXT_MODES:
        raise LineError(f"context_mode must be one of {', '.join(CONTEXT_MODES)}")
    has_history, has_answers = CONTEXT_MODES[mode]
    turns = a_list(data.get("turns"), "turns")
    before = tuple(names(data.get("pre_session_spawns"), "pre_session_spawns"))
    is_orchestrator = data.get("orchestrator")
    if not isinstance(is_orchestrator, bool | None):
        raise LineError("orchestrator must be true or false")
    if is_orchestrator:
        if turns or before:
            raise LineError("an orchestrator has no turns and no pre_session_spawns")
        return Conversation(_rounds(data))
    for key in OF_ORCHESTRATORS:
        if data.get(key) not in (None, []):
            raise LineError(f"{key} is only for an orchestrator")
    if not turns:
        raise LineError("turns must be a list that is not empty")
    read = tuple(_turn(turn, place, len(turns), vocab_size) for place, turn in enumerate(turns))
    return Conversation(read, before, has_history, has_answers)


def _rounds(data: dict[str, Any]) -> tuple[Turn, ...]:
    """Turns that ask nothing, each waiting for those whom the one before has begun."""
    spawns = names(data.get("spawns"), "spawns")
    think_s = seconds(data, "think_time_ms") or 0.0
    rounds = data.get("rounds")
    if rounds is None:
        plans = [(spawns, think_s)]
    elif isinstance(rounds, list):
        if spawns:
            raise LineError("spawns are the rounds' own where rounds is a list")
        plans = []
        for place, one in enumerate(rounds):
            where = f"rounds[{place}]"
            own_s = seconds(an_object(one, where), "think_time_ms")
            own = names(one.get("spawns"), f"{where}.spawns")
            plans.append((own, think_s if own_s is None else own_s))
    else:
        num_rounds = count(data, "rounds")
        if num_rounds * max(1, len(spawns)) > MAX_CALLS:
            raise LineError(f"its rounds come to more than {MAX_CALLS} calls")
        plans = [(spawns, think_s)] * num_rounds
    if not plans or not all(children for children, _ in plans):
        raise LineError("an orchestrator must have spawns, in each of its rounds")
    turns = [
        Turn(None, pause_s=pause_s, spawns=tuple((child, place + 1) for child in children))
        for place, (children, pause_s) in enumerate(plans)
    ]
    # Without rounds nobody waits for those it begins.
    return tuple(turns) if rounds is None else (*turns, Turn(None))


def _turn(value: Any, place: int, num_turns: int, vocab_size: int) -> Turn:
    where = f"turns[{place}]"
    turn = an_object(value, where)
    forks = a_list(turn.get("forks"), f"{where}.forks")
    spawns = a_list(turn.get("spawns"), f"{where}.spawns")
    return Turn(
        read_messages(turn.get("messages"), f"{where}.messages", vocab_size),
        read_tools(turn.get("tools"), f"{where}.tools", vocab_size),
        count(turn, "max_tokens", DEFAULT_OUTPUT),
        seconds(turn, "delay") or 0.0,
        tuple(_fork(fork, place == num_turns - 1, f"{where}.forks") for fork in forks),
        tuple(
            pair
            for spawn in spawns
            for pair in _spawned(spawn, place, num_turns, f"{where}.spawns")
        ),
    )


def _fork(value: Any, is_at_end: bool, where: str) -> str:
    fork = value if isinstance(value, dict) else {"child": value}
    child, is_background = fork.get("child"), fork.get("background")
    if not isinstance(child, str) or not isinstance(is_background, bool | None):
        raise LineError(f"{where} must be session ids, or objects with child and background")
    if not is_background and not is_at_end:
        raise LineError(f"{where}: a session ends where it forks, unless background is true")
    return child


def _spawned(value: Any, place: int, num_turns: int, where: str) -> list[tuple[str, int]]:
    """Whom an entry begins, and the turn that waits for each."""
    if isinstance(value, str):
        return [(value, place + 1)]
    if not isinstance(value, dict):
        raise LineError(f"{where} must be session ids, or objects with children and join_at")
    children = names(value.get("children"), f"{where}: children")
    join_at = value.get("join_at")
    if join_at is None:
        join_at = place + 1
    if not isinstance(join_at, int) or isinstance(join_at, bool) or join_at <= place:
        raise LineError(f"{where}: join_at must be a later turn")
    if join_at > num_turns:
        raise LineError(f"{where}: join_at is past the last turn")
    return [(child, join_at) for child in children]
