"""Traces made smaller: what prompts share stays shared."""

import numpy as np
import pytest

from experiments.workloads.base import Call, Run, Workload
from experiments.workloads.reduction import TOKEN_S, shortened, staggered, thinned
from tests.experiments.workloads.trace_lines import shared

TOKENS = np.arange(64, dtype=np.int32)


def run_of(*calls, start_s=0.0):
    return Run("t", "r", None, calls, start_s)


def chain(*pauses_s, num_output=1):
    return [
        Call("a", (TOKENS,), 8, num_output, (number - 1,) if number else (), pause_s)
        for number, pause_s in enumerate(pauses_s)
    ]


def test_prompts_that_begin_alike_still_do():
    longer = np.concatenate([TOKENS, TOKENS])
    calls = [Call("a", parts, 16, 24) for parts in ((TOKENS,), (longer,), (TOKENS[:40], -TOKENS))]
    (run,) = thinned([run_of(*calls)], 8)
    first, second, third = run.calls
    assert [sum(map(len, call.parts)) for call in run.calls] == [8, 16, 13]
    assert (shared(first, second), shared(first, third)) == (8, 5)
    assert (first.num_fixed, first.num_output) == (2, 3)
    assert run_of(*calls).prompt_lens == thinned([run_of(*calls)], 1)[0].prompt_lens


def test_calls_share_what_they_shared_and_answers_stay_parts():
    calls = [Call("a", (TOKENS,), 0, 4), Call("a", (TOKENS, 0, TOKENS[:8]), 0, 4, (0,))]
    (run,) = thinned([run_of(*calls)], 8)
    assert run.calls[0].parts[0] is run.calls[1].parts[0]
    assert run.calls[1].parts[1] == 0
    assert run.calls[0].num_output == 1
    assert run.prompt_lens == (8, 8 + 1 + 1)


def test_pauses_and_arrivals_are_shortened():
    workload = shortened(Workload("w", (run_of(*chain(0.0, 9.0, 4.0), start_s=8.0),)), 0.5)
    assert [call.pause_s for call in workload.runs[0].calls] == [0.0, 4.5, 2.0]
    assert workload.runs[0].start_s == 4.0


def test_a_session_begins_when_one_before_it_has_ended():
    long, short = run_of(*chain(12.0, 12.0)), run_of(*chain(2.0))
    starts = [run.start_s for run in staggered(Workload("w", (long, short, short, long)), 2).runs]
    # The median is the mean of both, and two begin in that time.
    second_s = (24.0 + 2 * TOKEN_S + 2.0 + TOKEN_S) / 2 / 2
    short_s = 2.0 + TOKEN_S
    assert starts == pytest.approx([0.0, second_s, second_s + short_s, second_s + 2 * short_s])


def test_of_calls_side_by_side_the_longest_counts():
    calls = [
        Call("a", (TOKENS,), 0, 1),
        Call("b", (TOKENS,), 0, 1, (0,), 5.0),
        Call("c", (TOKENS,), 0, 1, (0,), 1.0),
    ]
    runs = staggered(Workload("w", (run_of(*calls), run_of(*calls))), 1).runs
    assert runs[1].start_s == pytest.approx(5.0 + 2 * TOKEN_S)
