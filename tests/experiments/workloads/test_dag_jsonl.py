"""AIPerf's ``dag_jsonl``: forks, spawned sessions, orchestrators."""

import numpy as np
import pytest

from kvflow_jax.workflow.step_graph import RunState
from tests.experiments.workloads.trace_lines import named, session, system, turn


def test_a_fork_continues_the_history_and_a_spawned_session_does_not(read):
    (run,) = read(
        session(
            "root",
            turn(system("s" * 36), max_tokens=3, spawns=["helper"]),
            turn("x" * 16, delay=250, forks=["left"]),
        ),
        session("helper", turn("h" * 4), turn("h" * 4)),
        session("left", turn("l" * 8, max_tokens=9)),
    )
    calls = named(run)
    (n0, first), (n1, second) = calls["root"]
    helper, left = calls["helper"], calls["left"][0][1]
    assert first.num_fixed == 13
    assert run.prompt_lens[n0] == 13
    assert second.pause_s == 0.25
    assert set(second.after) == {n0, helper[-1][0]}  # it waits for the sessions that it spawned
    assert second.parts[1] == n0  # its own answer is part of its history
    assert helper[0][1].after == (n0,)
    assert len(helper[0][1].parts) == 1
    assert left.parts[: len(second.parts)] == second.parts
    assert left.parts[len(second.parts)] == n1
    assert left.num_fixed == 13
    assert left.num_output == 9
    assert left.is_last


def test_the_graph_of_a_file_is_that_of_its_calls(read):
    (run,) = read(
        session("root", turn("1", spawns=["a", "b"]), turn("2")),
        session("a", turn("3"), turn("4")),
        session("b", turn("5")),
    )
    state = RunState(run.graph)
    assert run.graph.names[0] == "0"
    assert state.steps() == (0, 1, 2, 1, 3)  # the second turn waits for both
    (alone,) = read(session("root", turn("1")))
    assert alone.graph is None


def test_tools_stay_until_a_turn_replaces_them(read):
    one, other = [{"name": "search"}], [{"name": "write"}]
    (run,) = read(session("a", turn("1", tools=one), turn("2"), turn("3", tools=other)))
    first, second, third = (call.parts[0] for call in run.calls)
    assert first is second
    assert not np.array_equal(first, third)
    assert run.calls[1].num_fixed == len(first)


def test_a_background_fork_does_not_block_its_parent(read):
    fork = {"child": "b", "background": True}
    (run,) = read(session("a", turn("1", forks=[fork]), turn("2")), session("b", turn("3")))
    calls = named(run)
    assert calls["a"][1][1].after == (calls["a"][0][0],)  # it does not wait
    assert calls["b"][0][1].parts[:2] == calls["a"][1][1].parts[:2]


def test_a_join_may_be_later(read):
    spawn = {"children": ["b", "c"], "join_at": 2}
    (run,) = read(
        session("a", turn("1", spawns=[spawn]), turn("2"), turn("3")),
        session("b", turn("4")),
        session("c", turn("5")),
    )
    calls = named(run)
    (n0, _), (n1, second), (_, third) = calls["a"]
    assert second.after == (n0,)
    assert set(third.after) == {n1, calls["b"][0][0], calls["c"][0][0]}


@pytest.mark.parametrize(
    "rounds",
    [
        {"spawns": ["b", "c"], "rounds": 2, "think_time_ms": 500},
        {"rounds": [{"spawns": ["b", "c"], "think_time_ms": 500}] * 2},
    ],
)
def test_rounds_of_an_orchestrator_run_in_sequence(read, rounds):
    (run,) = read(
        {"session_id": "root", "orchestrator": True, **rounds},
        session("b", turn("1")),
        session("c", turn("2"), turn("3")),
    )
    b, c = named(run)["b"], named(run)["c"]
    assert len(run.calls) == 6
    first, second = b[0][1], b[1][1]
    assert first.after == ()
    assert set(second.after) == {b[0][0], c[1][0]}
    assert [first.pause_s, second.pause_s, c[0][1].pause_s, c[1][1].pause_s] == [0.5, 0.5, 0.5, 0]


def test_an_orchestrator_without_rounds_does_not_wait(read):
    (run,) = read(
        session("root", turn("a", spawns=["o"]), turn("b"), pre_session_spawns=["w"]),
        {"session_id": "o", "orchestrator": True, "turns": [], "spawns": ["w"]},
        session("w", turn("x")),
    )
    calls = named(run)
    (n0, _), (_, last) = calls["root"]
    assert last.after == (n0,)
    assert [call.after for _, call in calls["w"]] == [(), (n0,)]


def test_the_context_mode_decides_what_a_prompt_includes(read):
    mode = {"context_mode": "Message_Array_With_Responses"}
    deltas = {"context_mode": "deltas_with_responses"}
    turns = (turn(system("s" * 4), "1", max_tokens=7), turn(system("t" * 4), "2"))
    arrays, kept, default = read(
        session("a", *turns, **mode), session("b", *turns, **deltas), session("c", *turns)
    )
    assert arrays.prompt_lens == (10, 10)
    assert kept.prompt_lens == (10, 20)
    assert default.prompt_lens == (10, 27)


def test_a_session_that_starts_twice_runs_twice(read):
    (run,) = read(
        session("root", turn("a", spawns=["w"]), turn("b", spawns=["w"]), turn("c")),
        session("w", turn("x", max_tokens=None), turn("y")),
    )
    calls = named(run)
    assert len(calls["w"]) == 4
    assert len({call.session for _, call in calls["w"]}) == 2
    assert calls["w"][0][1].after == (calls["root"][0][0],)
    assert calls["w"][2][1].after == (calls["root"][1][0],)
    assert set(calls["root"][2][1].after) == {calls["root"][1][0], calls["w"][3][0]}
