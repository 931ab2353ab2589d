"""A planner, workers with tools, and a verifier that sends back."""

from experiments.workloads.fan_out import (
    MAX_ATTEMPTS,
    MAX_TURNS,
    MAX_WORKERS,
    MIN_TURNS,
    MIN_WORKERS,
    fan_out,
)
from kvflow_jax.workflow.step_graph import RunState

WORKLOAD = fan_out(num_runs=20, rate=1.0, vocab_size=50, scale=0.02, seed=3)


def of(run, agent):
    return [call for call in run.calls if call.agent.startswith(agent)]


def test_each_attempt_has_a_plan_workers_side_by_side_and_a_verdict():
    attempts = set()
    for run in WORKLOAD.runs:
        workers = {call.agent for call in of(run, "worker")}
        assert MIN_WORKERS <= len(workers) <= MAX_WORKERS
        assert len(of(run, "plan")) == len(of(run, "verify")) <= MAX_ATTEMPTS
        attempts.add(len(of(run, "plan")))
        for verdict in of(run, "verify"):
            ends = [run.calls[number] for number in verdict.after]
            assert {call.agent for call in ends} == workers
            assert all(call.is_last for call in ends)
        sessions = {call.session for call in of(run, "worker")}
        for session in sessions:
            turns = [call for call in run.calls if call.session == session]
            assert MIN_TURNS <= len(turns) <= MAX_TURNS
            assert turns[0].pause_s == 0.0
            assert all(turn.pause_s > 0.0 for turn in turns[1:])
        assert run.calls[-1].agent == "report"
        assert run.calls[-1].is_last
    assert len(attempts) > 1


def test_all_agents_share_the_tools_and_workers_their_role():
    parts = [call.parts for run in WORKLOAD.runs for call in run.calls]
    assert len({id(one[0]) for one in parts}) == 1
    assert len({id(one[1]) for one in parts}) == 4


def test_the_graph_of_a_run_allows_its_calls():
    for run in WORKLOAD.runs:
        state = RunState(run.graph)
        for call in run.calls:
            assert call.agent in {run.graph.agents[node] for node in state.ready}
            state.start(call.agent)
            state.finish(call.agent)
        assert state.is_over
