"""Workloads, traces, and what experiments keep."""

import json

import numpy as np
import pytest

from experiments.sim.machines import UnknownNameError, machine, pool_tokens, shape
from experiments.store import Store
from experiments.workloads.base import Sizes
from experiments.workloads.catalogue import WORKLOADS, workload
from experiments.workloads.paper import stages
from experiments.workloads.readers import TraceError, read_trace

VOCAB = 1000


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_gives_the_same_workload_and_calls_wait_for_earlier_ones(name):
    one, same, other = (WORKLOADS[name].build(VOCAB, seed, True) for seed in (1, 1, 2))
    for a, b in zip(one.runs, same.runs, strict=True):
        assert (a.client, a.workflow_id, a.start_s) == (b.client, b.workflow_id, b.start_s)
        for x, y in zip(a.calls, b.calls, strict=True):
            assert x.after == y.after
            for p, q in zip(x.parts, y.parts, strict=True):
                assert np.array_equal(p, q)
    first, second = one.runs[0].calls[0].parts[0], other.runs[0].calls[0].parts[0]
    assert not np.array_equal(first, second)
    for run in one.runs:
        for number, call in enumerate(run.calls):
            assert all(before < number for before in call.after)
            given = [part for part in call.parts if isinstance(part, int)]
            assert all(before < number for before in given)
            assert call.num_fixed <= run.prompt_lens[number]
            if run.graph is not None:
                assert call.agent in run.graph.nodes_of
    assert one.num_calls == sum(len(run.calls) for run in one.runs)
    assert len({(run.client, run.workflow_id) for run in one.runs}) == len(one.runs)


def test_agents_of_a_stage_share_the_start_of_their_prefixes():
    made = stages(
        num_branches=2, num_rounds=1, num_stages=3, sizes=Sizes(100, 4, 4), vocab_size=VOCAB
    )
    left, right = made.runs[0].calls[:2]
    assert np.array_equal(left.parts[0], right.parts[0])
    assert len(left.parts[0]) == 25
    assert not np.array_equal(left.parts[1], right.parts[1])


def test_names_that_are_none_say_which_there_are():
    for ask, known in ((workload, "team"), (machine, "a10g"), (shape, "llama-3.1-8b")):
        with pytest.raises(UnknownNameError, match=known):
            ask("nothing")
    with pytest.raises(UnknownNameError):
        machine("a10g xtwo")
    many = machine("h100-pcie x4")
    assert many.memory_bytes == 4 * machine("h100-pcie").memory_bytes
    assert pool_tokens(machine("h100-pcie"), shape("llama-3.1-70b")) < 0
    assert pool_tokens(many, shape("llama-3.1-70b")) > 100_000


def test_mooncake_lines_share_what_has_the_same_hashes(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3500, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 9]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    read = read_trace(path, VOCAB)
    one, two = (run.calls[0] for run in read.runs)
    assert [run.start_s for run in read.runs] == [0.0, 2.5]
    assert [run.prompt_lens for run in read.runs] == [(1100,), (1030,)]
    assert [np.array_equal(a, b) for a, b in zip(one.parts, two.parts, strict=True)] == [
        True,
        True,
        False,
    ]


def test_a_dag_forks_with_its_history_and_spawns_without(tmp_path):
    path = tmp_path / "dag.jsonl"

    def turn(text, **rest):
        return {"messages": [{"role": "user", "content": text}], **rest}

    system = {"role": "system", "content": "s" * 36}
    lines = [
        {
            "session_id": "root",
            "turns": [
                {"messages": [system], "max_tokens": 3, "spawns": ["helper"]},
                turn("x" * 16, delay=250, forks=["left"]),
            ],
        },
        {"session_id": "helper", "turns": [turn("h" * 4), turn("h" * 4)]},
        {"session_id": "left", "turns": [turn("l" * 8, max_tokens=9)]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    (run,) = read_trace(path, VOCAB).runs
    calls = {}
    for number, call in enumerate(run.calls):
        calls.setdefault(call.agent, []).append((number, call))
    (n0, first), (n1, second) = calls["root"]
    helper, left = calls["helper"], calls["left"][0][1]
    assert first.num_fixed == 13
    assert run.prompt_lens[n0] == 13
    assert second.pause_s == 0.25
    assert set(second.after) == {n0, helper[-1][0]}  # it waits for whom it has spawned
    assert second.parts[1] == n0  # its own answer is part of its history
    assert helper[0][1].after == (n0,)
    assert len(helper[0][1].parts) == 1
    assert left.parts[: len(second.parts)] == second.parts
    assert left.parts[len(second.parts)] == n1
    assert left.num_output == 9
    assert left.is_last


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ('{"input_length": 5}\nnonsense\n[1]\n', "line 2: not JSON.*line 3: not an object"),
        ('{"input_length": 0}', "line 1: input_length must be"),
        ('{"input_length": 600, "hash_ids": [1]}', "line 1: 1 hash_ids of 512 tokens do not fit"),
        ('{"input_length": 5, "timestamp": -1}', "line 1: timestamp"),
        ('{"session_id": "a", "turns": []}', "line 1: turns must"),
        (
            '{"session_id": "a", "turns": [{"messages": [], "forks": ["b"]}]}',
            "line 1: there is no session 'b'",
        ),
        (
            '{"session_id": "a", "turns": [{"messages": []}]}\n'
            '{"session_id": "a", "turns": [{"messages": []}]}',
            "line 2: session 'a' is there twice",
        ),
        (
            '{"session_id": "a", "turns": [{"messages": [], "forks": ["b"]}]}\n'
            '{"session_id": "b", "turns": [{"messages": [], "forks": ["a"]}]}',
            "circle",
        ),
        (
            '{"session_id": "a", "turns": [{"messages": [], "spawns": [{"children": ["b"], '
            '"join_at": 0}]}]}',
            "line 1: turns.0..spawns: join_at",
        ),
    ],
)
def test_broken_traces_name_their_lines(tmp_path, text, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_trace(path, VOCAB)


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "results.json"
    first = Store(path, {"seed": 0})
    first.put("a", {"x": 1})
    first.put("b", (1, 2))
    kept = path.with_name("results.json.partial")
    kept.write_text(kept.read_text() + '["c", {"x"')  # the process ended here
    again = Store(path, {"seed": 0})
    assert again.results == {"a": {"x": 1}, "b": [1, 2]}
    again.put("c", 3)
    assert Store(path, {"seed": 0}).results["c"] == 3
    assert Store(path, {"seed": 1}).results == {}  # another question
    again.close()
    assert not kept.exists()
    Store(None, {}).put("a", 1)  # nothing is kept, and that is fine
