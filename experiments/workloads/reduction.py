"""Reduce a trace: fewer tokens, shorter pauses, and as many sessions at once as are asked for."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from experiments.workloads.base import Call, Part, Run, Workload

TOKEN_S = 0.01  # about what a token of an answer takes, to estimate how long a session is


def thinned(runs: Iterable[Run], scale: int) -> tuple[Run, ...]:
    """Return runs with every ``scale``-th token of each part of a prompt, and such answers.

    Prompts that begin with the same parts, or with the beginning of the same part, still do.
    """
    if scale == 1:
        return tuple(runs)
    # Calls share parts, and parts are views of others: each is copied once.
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def part_of(part: Part) -> Part:
        if isinstance(part, int):
            return part
        if id(part) not in kept:
            kept[id(part)] = part, part[::scale].copy()  # with the part, so that its id stays
        return kept[id(part)][1]

    def call_of(call: Call) -> Call:
        return replace(
            call,
            parts=tuple(map(part_of, call.parts)),
            num_fixed=call.num_fixed // scale,
            num_output=max(1, call.num_output // scale),
        )

    return tuple(replace(run, calls=tuple(map(call_of, run.calls))) for run in runs)


def shortened(workload: Workload, factor: float) -> Workload:
    """Return a workload whose pauses are this share of what they were."""

    def scaled(run: Run) -> Run:
        calls = tuple(replace(call, pause_s=factor * call.pause_s) for call in run.calls)
        return replace(run, calls=calls, start_s=factor * run.start_s)

    return replace(workload, runs=tuple(map(scaled, workload.runs)))


def staggered(workload: Workload, num_at_once: int) -> Workload:
    """Return a workload whose runs begin in their order, about ``num_at_once`` at a time.

    The first ones begin one by one, within the time of a median run; each of the others when one
    before it has ended, as far as pauses and answers tell: how long a server takes is not known in
    advance.
    """
    durations_s = list(map(_duration_s, workload.runs))
    gap_s = statistics.median(durations_s) / num_at_once
    begins_s = [gap_s * number for number in range(num_at_once)]  # a heap
    runs = []
    for run, duration_s in zip(workload.runs, durations_s, strict=True):
        runs.append(replace(run, start_s=begins_s[0]))
        heapq.heapreplace(begins_s, begins_s[0] + duration_s)
    return replace(workload, runs=tuple(runs))


def _duration_s(run: Run) -> float:
    ends_s: list[float] = []
    for call in run.calls:
        begun_s = max((ends_s[before] for before in call.after), default=0.0) + call.pause_s
        ends_s.append(begun_s + TOKEN_S * call.num_output)
    return max(ends_s)
