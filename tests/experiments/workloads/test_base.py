"""Workloads as data."""

import numpy as np

from experiments.workloads.base import Call, Prompts, Run, Sizes, Workload


def three_calls():
    tokens = np.arange(10, dtype=np.int32)
    calls = (
        Call("a", (tokens,), 10, 4),
        Call("b", (tokens, 0), 10, 6, after=(0,)),
        Call("c", (0, 1), 0, 2, after=(0, 1)),
    )
    return Run("tenant", "run", None, calls)


def test_prompts_include_the_outputs_of_earlier_calls():
    run = three_calls()
    assert run.prompt_lens == (10, 14, 10)
    assert run.followers == ((1, 2), (2,), ())


def test_the_longest_call_and_the_total_count_prompts_and_outputs():
    workload = Workload("w", (three_calls(),))
    assert workload.num_calls == 3
    assert workload.longest == 20
    assert workload.total == 34 + 12


def test_named_tokens_stay_and_new_ones_differ():
    prompts = Prompts(0, 1000)
    assert prompts.named(20, "tenant", "agent") is prompts.named(20, "tenant", "agent")
    one, two = (prompts.call("tenant", "agent", Sizes(20, 8, 4), (), 1) for _ in range(2))
    assert one.parts[0] is two.parts[0]
    assert not np.array_equal(one.parts[1], two.parts[1])


def test_heavy_tails_are_clipped():
    prompts = Prompts(0, 1000)
    drawn = [prompts.lognormal(100, 2.0, 50, 200) for _ in range(50)]
    assert min(drawn) == 50
    assert max(drawn) == 200
