"""The workloads of the paper's evaluation."""

import numpy as np

from experiments.workloads.base import Sizes
from experiments.workloads.paper import concurrent, cycle, peer, stages

VOCAB = 1000


def test_agents_of_a_stage_share_the_start_of_their_prefixes():
    made = stages(
        num_branches=2, num_rounds=1, num_stages=3, sizes=Sizes(100, 4, 4), vocab_size=VOCAB
    )
    left, right = made.runs[0].calls[:2]
    assert np.array_equal(left.parts[0], right.parts[0])
    assert len(left.parts[0]) == 25
    assert not np.array_equal(left.parts[1], right.parts[1])


def test_a_cycle_repeats_the_prefix_of_each_agent_every_round():
    (run,) = cycle(num_agents=3, num_rounds=2, sizes=Sizes(32, 4, 4), vocab_size=VOCAB).runs
    assert [call.round for call in run.calls] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert run.calls[0].parts[0] is run.calls[3].parts[0]
    assert not np.array_equal(run.calls[0].parts[1], run.calls[3].parts[1])
    assert [call.after for call in run.calls[:3]] == [(), (0,), (1,)]


def test_concurrent_runs_share_no_prefix():
    sizes = Sizes(32, 4, 4)
    made = concurrent(num_runs=2, num_agents=2, num_rounds=1, sizes=sizes, vocab_size=VOCAB)
    one, other = (run.calls[0].parts[0] for run in made.runs)
    assert not np.array_equal(one, other)


def test_roles_of_peer_share_the_start_of_their_prompts():
    (run,) = peer(num_runs=1, num_rounds=1, vocab_size=VOCAB).runs
    plan, execute, *_ = run.calls
    assert plan.parts[0] is execute.parts[0]
    assert execute.parts[-1] == 0  # the plan, which is the output of call 0
    assert len(run.calls) == 8
