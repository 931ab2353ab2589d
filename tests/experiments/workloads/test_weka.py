"""Sessions of coding agents in the *weka* form."""

import json

import pytest

from experiments.workloads.base import Prompts
from experiments.workloads.lines import LineError
from experiments.workloads.readers import TraceError, read_trace
from experiments.workloads.weka import MAX_DEPTH, weka_run
from tests.experiments.workloads.trace_lines import named, shared

BLOCK = 4


def request(t, *ids, out=3, api_time=1.0, **rest):
    num = BLOCK * len(ids)
    return {"t": t, "type": "n", "in": num, "out": out, "hash_ids": list(ids)} | {
        "api_time": api_time,
        **rest,
    }


def subagent(t, duration_s, *requests, agent_id="agent_1", **rest):
    return {
        "type": "subagent",
        "t": t,
        "duration_ms": duration_s * 1000,
        "agent_id": agent_id,
        "subagent_type": "Explore",
        "requests": list(requests),
        **rest,
    }


def session(*requests, **rest):
    return {
        "id": "s",
        "block_size": BLOCK,
        "tool_tokens": 4,
        "system_tokens": 3,
        "requests": list(requests),
        **rest,
    }


def run_of(*requests, **rest):
    return weka_run(session(*requests, **rest), Prompts(0, 1000))


def test_prompts_are_the_blocks_of_their_ids():
    run = run_of(request(0, 1, 2, 3), request(9, 1, 2, 4, 5), request(20, 1, 6))
    first, second, third = run.calls
    assert run.prompt_lens == (12, 16, 8)
    assert (shared(first, second), shared(first, third), shared(second, third)) == (8, 4, 4)
    again = run_of(request(0, 7, 8), request(5, 9), request(6, 7, 8))
    assert shared(again.calls[0], again.calls[2]) == 8
    assert [call.num_output for call in run.calls] == [3, 3, 3]
    assert [call.num_fixed for call in run.calls] == [7, 7, 7]


def test_a_prompt_may_end_within_a_block_that_the_next_one_fills():
    cut = {**request(0, 1, 2, 3), "in": 10}
    run = run_of(cut, request(5, 1, 2, 3, 4))
    assert run.prompt_lens == (10, 16)
    assert shared(*run.calls) == 10


def test_what_fills_no_block_is_new_in_each_prompt():
    one, other = {**request(0, 1, 2), "in": 10}, {**request(5, 1, 2, 3), "in": 13}
    run = run_of(one, other, {**request(9), "in": 3})
    assert run.prompt_lens == (10, 13, 3)
    assert shared(run.calls[0], run.calls[1]) == 8
    assert shared(run.calls[0], run.calls[2]) == 0


def test_turns_follow_each_other_after_the_pause_of_the_trace():
    run = run_of(request(0, 1), request(9, 1, 2, api_time=2.0), request(10, 1, 2, 3))
    assert [call.after for call in run.calls] == [(), (0,), (1,)]
    assert [call.pause_s for call in run.calls] == [0.0, 8.0, 0.0]
    assert [call.is_last for call in run.calls] == [False, False, True]
    assert {call.session for call in run.calls} == {"main"}


def test_subagents_run_side_by_side_and_the_next_request_waits_for_them():
    run = run_of(
        request(0, 1, api_time=2.0),
        subagent(12, 10, request(0, 8), request(4, 8, 9), tool_tokens=2),
        subagent(22, 19, request(0, 8), agent_id="agent_2"),
        request(25, 1, 2),
    )
    calls = named(run)
    (first, _), (_, last) = calls["main"]
    (one, a), (two, b), (three, c) = calls["Explore"]
    assert a.after == c.after == (first,)
    assert (a.pause_s, c.pause_s) == (0.0, 1.0)
    assert (b.after, b.pause_s) == ((one,), 3.0)
    assert set(last.after) == {first, two, three}
    assert last.pause_s == 3.0
    assert a.session != c.session
    assert (a.num_fixed, c.num_fixed) == (2, 0)
    assert b.is_last
    assert c.is_last


def test_the_graph_has_the_agents_and_how_often_they_follow():
    run = run_of(
        request(0, 1), request(5, 1, 2), subagent(20, 8, request(0, 8)), request(30, 1, 2, 3)
    )
    assert set(run.graph.nodes_of) == {"main", "Explore"}
    edges = zip(run.graph.sources, run.graph.targets, run.graph.likelihoods, strict=True)
    names = run.graph.names
    chances = {(names[a], names[b]): chance for a, b, chance in edges}
    assert chances == {
        ("main", "main"): pytest.approx(2 / 3),
        ("main", "Explore"): pytest.approx(1 / 3),
        ("Explore", "main"): 1.0,
    }
    assert run_of(request(0, 1)).graph is None


def test_a_session_may_begin_with_a_subagent():
    run = run_of(subagent(5, 5, request(0, 8)), request(6, 1))
    assert run.calls[1].after == (0,)


def nested(depth):
    inner = request(0, 1)
    for i in range(depth):
        inner = subagent(1, 1, inner, agent_id=f"a{i}")
    return inner


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (session(), "requests must not be empty"),
        (session(request(0, 1), id=7), "id must be a string"),
        (session(request(0, 1), block_size=0), "block_size must be"),
        (session(7), r"requests\[0\] must be an object"),
        (session(requests={}), "requests must be a list"),
        (session(request(0)), r"requests\[0\].in must be what its 0 blocks"),
        (session(request(0, "x")), r"requests\[0\].hash_ids must be a list of integers"),
        (session({**request(0, 1), "in": 8}), r"requests\[0\].in must be what its 1 blocks"),
        (session({**request(0, 1), "in": 10**12}), r"requests\[0\].in must be an integer"),
        (session(request(-1, 1)), r"requests\[0\].t must be a time"),
        (session(request(float("nan"), 1)), r"requests\[0\].t must be a time"),
        (session(request(0, 1, out=-1)), r"requests\[0\].out must be an integer"),
        (session(request(0, 1), tool_tokens=True), "tool_tokens must be an integer"),
        (session(subagent(1, 1, 7)), r"requests\[0\].requests\[0\] must be an object"),
        (session(subagent(1, 1, agent_id="")), r"requests\[0\].agent_id must be a string"),
        (session(nested(MAX_DEPTH + 1)), "nested more than 8 deep"),
    ],
)
def test_broken_sessions_name_the_field(broken, message, tmp_path):
    with pytest.raises(LineError, match=message):
        weka_run(broken, Prompts(0, 1000))
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(TraceError, match=f"broken.json: .*{message}"):
        read_trace(path, 1000)


def test_a_folder_is_read_as_all_its_sessions(tmp_path):
    for name in ("b", "a"):
        data = session(request(0, 1, 2), id=name)
        (tmp_path / f"{name}.json").write_text(json.dumps(data, indent=1))
    runs = read_trace(tmp_path, 1000).runs
    assert [run.workflow_id for run in runs] == ["a", "b"]
    assert shared(runs[0].calls[0], runs[1].calls[0]) == 0  # what they share is not known
    (tmp_path / "c.json").write_text('{"a": 1}')
    with pytest.raises(TraceError, match=r"c\.json is no session"):
        read_trace(tmp_path, 1000)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TraceError, match=r"has no \.json files"):
        read_trace(empty, 1000)
