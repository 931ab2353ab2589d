"""Read *weka* traces: a session of a coding agent a file, with its subagents inside.

    {"id", "block_size", "tool_tokens", "system_tokens", "requests": [
        {"t", "in", "out", "hash_ids", "api_time"},
        {"type": "subagent", "t", "duration_ms", "agent_id", "subagent_type", "requests"}]}

``t`` is when a request begins, and when a subagent has ended, in seconds. A prompt is the blocks of
its ``hash_ids``, and what is left of ``in`` is new; equal ids are equal tokens. Subagents between
two requests run side by side, and the second request waits for all of them. Blocks of different
sessions differ: what they share is not in the traces. Read but ignored: models, kinds of input and
output, and all unknown fields.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.workloads.base import Call, Prompts, Run
from experiments.workloads.lines import MAX_TOKENS, LineError, as_list, as_object, read_count
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

MAIN = "main"  # the agent that a person talks to
MAX_DEPTH = 8  # of subagents within subagents


def weka_run(session: dict[str, Any], prompts: Prompts) -> Run:
    """Return the run of a session. Raises LineError, which names the field, for a broken one."""
    name = session.get("id")
    if not isinstance(name, str) or not name:
        raise LineError("id must be a string")
    block_size = read_count(session, "block_size")
    if block_size < 1:
        raise LineError("block_size must be at least 1")
    reader = _Reader(prompts, block_size)
    reader.read(session, "", MAIN, MAIN, (), 0.0)
    calls = tuple(reader.calls)
    if not calls:
        raise LineError("requests must not be empty")
    return Run(name, name, _graph(calls), calls)


@dataclass(slots=True)
class _End:
    """The end of a conversation so far: its last call, and when it ended in the trace."""

    call: int
    time_s: float


class _Reader:
    """Reads conversations, each after those that it waits for."""

    def __init__(self, prompts: Prompts, block_size: int) -> None:
        self.calls: list[Call] = []
        self.block_size = block_size
        self._prompts = prompts
        self._blocks: dict[int, np.ndarray] = {}

    def read(
        self,
        data: dict[str, Any],
        where: str,
        agent: str,
        session: str,
        after: tuple[int, ...],
        delay_s: float,
        depth: int = 0,
    ) -> int | None:
        """Append the calls of a conversation; return the number of the last one, None if empty.

        Args:
            where: path of ``data``, for errors.
            delay_s: pause before its first call.
        """
        if depth > MAX_DEPTH:
            raise LineError(f"{where}subagents are nested more than {MAX_DEPTH} deep")
        num_fixed = sum(_count(data, key, where) for key in ("tool_tokens", "system_tokens"))
        history = _History(self)
        ends = [_End(number, -delay_s) for number in after]
        last: _End | None = None
        for index, value in enumerate(as_list(data.get("requests"), f"{where}requests")):
            path = f"{where}requests[{index}]"
            request = as_object(value, path)
            time_s = _seconds(request, "t", path)
            if request.get("type") == "subagent":
                start_s = time_s - _seconds(request, "duration_ms", path) / 1e3
                begun_s = last.time_s if last else -delay_s
                number = self.read(
                    request,
                    f"{path}.",
                    _name(request, "subagent_type", path),
                    f"{session}/{_name(request, 'agent_id', path)}",
                    after if last is None else (last.call,),
                    max(0.0, start_s - begun_s),
                    depth + 1,
                )
                if number is not None:
                    ends.append(_End(number, time_s))
                continue
            parts = history.extend(request, path)
            num_prompt = sum(map(len, parts))
            pause_s = max(0.0, time_s - max((end.time_s for end in ends), default=0.0))
            self.calls.append(
                Call(
                    agent,
                    parts,
                    min(num_fixed, num_prompt),
                    max(1, _count(request, "out", path)),
                    tuple(end.call for end in ends),
                    pause_s if ends else delay_s,
                    session=session,
                )
            )
            last = _End(len(self.calls) - 1, time_s + _seconds(request, "api_time", path))
            ends = [last]
        if last is None:
            return None
        self.calls[last.call] = replace(self.calls[last.call], is_last=True)
        return last.call

    def tokens(self, ids: list[int]) -> np.ndarray:
        """Return the tokens of blocks, i32[len(ids) * block_size]."""
        unknown = [number for number in dict.fromkeys(ids) if number not in self._blocks]
        drawn = self._prompts.new(len(unknown) * self.block_size).reshape(-1, self.block_size)
        self._blocks.update(zip(unknown, drawn, strict=True))
        return np.concatenate([self._blocks[number] for number in ids])

    def new(self, count: int) -> np.ndarray:
        """Return tokens that no other prompt has, i32[count]."""
        return self._prompts.new(count)


class _History:
    """The prompts of a conversation, in parts that they share: most only extend the last one."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._ids: list[int] = []
        self._parts: list[np.ndarray] = []  # whole blocks of ``ids``

    def extend(self, request: dict[str, Any], path: str) -> tuple[np.ndarray, ...]:
        """Return the prompt of a request."""
        ids, size = as_list(request.get("hash_ids"), f"{path}.hash_ids"), self._reader.block_size
        if not all(type(one) is int for one in ids):
            raise LineError(f"{path}.hash_ids must be a list of integers")
        num_tokens = _count(request, "in", path)
        num_rest = num_tokens - len(ids) * size  # tokens of a last block that has no id
        if not num_tokens or not -size < num_rest < size:
            raise LineError(f"{path}.in must be what its {len(ids)} blocks of {size} tokens hold")
        num_same = 0
        for one, other in zip(ids, self._ids, strict=False):
            if one != other:
                break
            num_same += 1
        self._cut(num_same * size)
        if ids[num_same:]:
            self._parts.append(self._reader.tokens(ids[num_same:]))
        self._ids = ids
        if num_rest > 0:
            return (*self._parts, self._reader.new(num_rest))
        if not num_rest:
            return tuple(self._parts)
        *others, end = self._parts
        return (*others, end[:num_rest])

    def _cut(self, num_tokens: int) -> None:
        """Keep the first tokens."""
        kept: list[np.ndarray] = []
        for part in self._parts:
            if num_tokens <= 0:
                break
            kept.append(part[:num_tokens])
            num_tokens -= len(part)
        self._parts = kept


def _graph(calls: tuple[Call, ...]) -> Graph | None:
    """Return the graph of a session's agents, with how often one followed another in it."""
    follows = Counter((calls[before].agent, call.agent) for call in calls for before in call.after)
    if not follows:
        return None
    totals: Counter[str] = Counter()
    for (source, _), num in follows.items():
        totals[source] += num
    graph = Workflow().entry(calls[0].agent)
    for (source, target), num in follows.items():
        graph.edge(source, target, probability=num / totals[source])
    for target in dict.fromkeys(target for _, target in follows):
        graph.join(target, "any")
    return graph.freeze()


def _count(data: dict[str, Any], key: str, path: str) -> int:
    value = data.get(key, 0)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise LineError(f"{path}.{key} must be an integer between 0 and {MAX_TOKENS}".lstrip("."))
    return value


def _seconds(data: dict[str, Any], key: str, path: str) -> float:
    value = data.get(key) or 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12:
        raise LineError(f"{path}.{key} must be a time that is not negative")
    return float(value)


def _name(data: dict[str, Any], key: str, path: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise LineError(f"{path}.{key} must be a string")
    return value
