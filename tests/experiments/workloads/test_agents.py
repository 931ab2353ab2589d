"""Workflows beyond the paper's."""

from itertools import pairwise

import pytest

from experiments.workloads.agents import branching, chain3, dag4, dag10_wide, leader_loop, team
from experiments.workloads.base import Sizes

SIZES = Sizes(32, 8, 4)


def agents_of(run):
    return [call.agent for call in run.calls]


def test_a_branch_takes_one_side_and_then_all_readers():
    (run,) = branching(num_runs=1, num_rounds=0, sizes=SIZES, vocab_size=50).runs
    plan, side, *readers, write = agents_of(run)
    assert (plan, write) == ("plan", "write")
    assert side in ("search", "recall")
    assert readers == ["read0", "read1", "read2"]
    assert run.calls[-1].after == (2, 3, 4)


@pytest.mark.parametrize(("make", "num_agents"), [(chain3, 3), (dag4, 4), (dag10_wide, 10)])
def test_runs_of_a_graph_arrive_in_order_and_call_every_agent(make, num_agents):
    workload = make(num_runs=5, rate=2.0, sizes=SIZES, vocab_size=50)
    starts = [run.start_s for run in workload.runs]
    assert starts == sorted(starts)
    assert starts[0] == 0.0
    for run in workload.runs:
        assert len(set(agents_of(run))) == num_agents
        last = run.calls[-1]
        assert [part for part in last.parts if isinstance(part, int)] == list(last.after)


def test_a_review_sends_code_back_to_the_coder():
    workload = team(num_runs=4, num_rounds=3, sizes=SIZES, vocab_size=50)
    pairs = [pair for run in workload.runs for pair in pairwise(agents_of(run))]
    assert ("reviewer", "coder") in pairs
    assert ("reviewer", "tester") in pairs
    assert {run.tenant for run in workload.runs} == {"company"}


def test_a_leader_is_called_between_specialists():
    (run,) = leader_loop(num_runs=1, num_rounds=1, sizes=SIZES, vocab_size=50).runs
    assert agents_of(run)[:9:2] == ["leader"] * 5
    assert all(agent.startswith("specialist") for agent in agents_of(run)[1:9:2])
    assert run.calls[1].parts[-1] == 0  # the specialist reads the leader's output
