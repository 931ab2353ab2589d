"""The scripts that people run, from flags to files."""

import json
import os
import subprocess
import sys

import pytest

from experiments.compare import comparison
from experiments.compare.arms import ARMS
from experiments.compare.run_cell import Setting
from experiments.paper import evaluation
from experiments.report import writer
from experiments.workloads import catalogue
from experiments.workloads.agents import branching
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax.cache.policy import POLICIES, lru
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B


def tiny(vocab_size, seed, is_quick):
    return branching(
        num_runs=6, num_rounds=1, sizes=Sizes(256, 16, 8), vocab_size=vocab_size, seed=seed
    )


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with flags; its exit code, what it said, what it complained of."""
    entry = catalogue.Entry("small", tiny)
    monkeypatch.setattr(catalogue, "WORKLOADS", {"branching": entry})
    monkeypatch.setattr(comparison, "WORKLOADS", {"branching": entry})

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, flags)])
        code = script.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


ALL = dict(catalogue.WORKLOADS)
SMALL = ("--workload", "branching", "--pool-tokens", 3000, "--host-tokens", 9000)


def first_used(table, blocks):
    return lru(table, blocks)


def test_compare_writes_the_same_bytes_for_the_same_seed(run, tmp_path):
    one, two, other = (tmp_path / name for name in ("one.json", "two.json", "other.json"))
    for path, seed in ((one, 3), (two, 3), (other, 4)):
        code, said, _ = run(comparison, *SMALL, "--arms", "all", "--seed", seed, "--json", path)
        assert code == 0
        assert all(arm in said for arm in ARMS)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    arms = json.loads(one.read_text())["branching"]
    assert arms["gpu-only"]["tokens_from_host"] == 0
    assert arms["kvflow"]["calls"] == 6 * 6


def test_a_policy_of_ones_own_is_an_arm(run, tmp_path):
    where = "tests.experiments.test_scripts:first_used"
    path, trace = tmp_path / "out.json", tmp_path / "trace.json"
    flags = ("--arms", "gpu-only", "--policy", where, "--json", path, "--trace", trace)
    code, said, _ = run(comparison, *SMALL, *flags)
    assert code == 0
    assert where in said
    assert where in json.loads(path.read_text())["branching"]
    assert any(event["ph"] == "X" for event in json.loads(trace.read_text()))
    POLICIES.pop(where)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "best"), "unknown arm 'best'; known: all, gpu-only"),
        (("--workload", "nothing"), "unknown workload 'nothing'; known: all, branching"),
        (("--machine", "abacus"), "unknown machine 'abacus'"),
        (("--model", "gpt"), "unknown model 'gpt'"),
        (("--pool-tokens", 200), "too few"),
        (("--policy", "nowhere"), "--policy expects module:function"),
        (("--policy", "json:nothing"), "--policy expects module:function"),
        (("--trace-file", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_compare_says_what_it_cannot_do(run, flags, message):
    code, _, complaint = run(comparison, "--workload", "branching", *flags)
    assert code == 2
    assert message in complaint


def test_a_trace_is_played(run, tmp_path):
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 400 * i, "input_length": 1024, "output_length": 4, "hash_ids": [0, i % 3]}
        for i in range(9)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    code, said, _ = run(comparison, "--trace-file", trace, "--arms", "gpu-only,hicache")
    assert code == 0
    assert "trace.jsonl" in said


def test_what_sessions_of_a_dag_share_is_computed_once(run, tmp_path):
    trace, path = tmp_path / "dag.jsonl", tmp_path / "out.json"
    system = {"role": "system", "content": "x" * 4000}
    lines = [
        {
            "session_id": f"s{i}",
            "turns": [
                {"messages": [system, {"role": "user", "content": f"{i}"}], "max_tokens": 4},
                {"messages": [{"role": "user", "content": "more"}], "max_tokens": 4, "delay": 9000},
            ],
        }
        for i in range(5)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    code, _, _ = run(comparison, "--trace-file", trace, "--arms", "gpu-only", "--json", path)
    assert code == 0
    arms = json.loads(path.read_text())[str(trace)]
    assert arms["gpu-only"]["tokens_recomputed"] < 2 * 1000


def small_cells():
    sizes = Sizes(1024, 32, 32)
    where = Setting(LLAMA_3_1_8B, A10G, 4200, 20_000, max_num_seqs=4)

    def build(vocab_size, seed):
        return cycle(num_agents=6, num_rounds=1, sizes=sizes, vocab_size=vocab_size, seed=seed)

    reported = {("kvflow", "gpu-only"): 2.0}
    no_room = Setting(LLAMA_3_1_8B, A10G, 100, 100)
    return [
        evaluation.Cell(f"v1 a10g {sizes}", where, build, reported, is_quick=True),
        evaluation.Cell("v1 a10g 2048/32/32", no_room, build, is_quick=True),
        evaluation.Cell("camera-ready h100-effective x1 9/9/9", where, build),
    ]


def test_the_papers_cells_go_on_where_they_stopped_and_are_reported(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "cells", small_cells)
    path = tmp_path / "paper_sim.json"
    played = []
    whole = evaluation.run_paper_cell

    def run_and_interrupt(cell, arms, seed):
        played.append(cell.name)
        if len(played) == 2:
            raise KeyboardInterrupt
        return whole(cell, arms, seed)

    monkeypatch.setattr(evaluation, "run_paper_cell", run_and_interrupt)
    code, _, complaint = run(evaluation, "--quick", "--jobs", 1, "--json", path)
    assert code == 130
    assert "resumes from here" in complaint
    code, _, complaint = run(evaluation, "--quick", "--seed", 7, "--json", path)
    assert code == 2
    assert "other options" in complaint
    code, said, _ = run(evaluation, "--quick", "--jobs", 1, "--json", path)
    assert code == 0
    assert played == ["v1 a10g 1024/32/32", "v1 a10g 2048/32/32", "v1 a10g 2048/32/32"]
    assert "the paper 2.00x" in said
    assert "1088 tokens do not fit" in said
    found = json.loads(path.read_text())
    assert found["cells"]["v1 a10g 1024/32/32"]["paper"]["kvflow over gpu-only"]["ours"] > 1
    assert found["means"]["v1 a10g 1024"]["cells"] == 1
    assert run(evaluation, "--arms", "nobody")[0] == 2

    code, _, complaint = run(writer, "--results", tmp_path)
    assert code == 2
    assert "compare.json" in complaint
    assert run(comparison, *SMALL, "--json", tmp_path / "compare.json")[0] == 0
    monkeypatch.setattr(writer.timelines, "draw", lambda folder: ("a.png", "b.png"))
    assert run(writer, "--results", tmp_path)[0] == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "| v1 a10g 1024/32/32 | kvflow over gpu-only | 2.00x |" in text
    assert "## What of the paper is not reproduced" in text
    assert "Missing: `terms.json`. To write it, run `python -m experiments.terms" in text
    for name in ("kvflow-over-gpu-only.png", "kvflow-over-hicache.svg", "arms.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000
    assert ">kvflow-cost</text>" in (tmp_path / "figures" / "arms.svg").read_text()

    old = json.loads((tmp_path / "compare.json").read_text())
    del old["branching"]["hicache"]["ttft_p99_s"]
    (tmp_path / "compare.json").write_text(json.dumps(old))
    code, _, complaint = run(writer, "--results", tmp_path)
    assert code == 2
    assert "branching, hicache, has no ttft_p99_s" in complaint
    assert "python -m experiments.compare --workload all --arms all --json" in complaint


def test_cells_played_at_once_give_what_they_give_one_by_one():
    names = ["v1 a10g 1024/32/32", "v1 a10g 1024/256/32"]
    jobs = [(name, ["gpu-only", "kvflow"], 0) for name in names]
    assert dict(evaluation.run_jobs(jobs, 2)) == dict(evaluation.run_jobs(jobs, 1))


def test_another_process_writes_the_same_bytes(tmp_path):
    """Python hashes strings otherwise in each; no order may hang on it."""
    flags = ["--workload", "branching", "--quick", "--arms", "kvflow,kvflow-cost"]
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.json"
        command = [sys.executable, "-m", "experiments.compare", *flags, "--host-tokens", "20000"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([*command, "--json", path], env=environment, check=True, timeout=300)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def one_axis(table, blocks):
    return table.last_use[blocks]


def own(table, blocks):
    return -table.last_use[blocks][:, None]


def test_policies_of_ones_own_are_played_and_told_what_is_wrong(run):
    here = "tests.experiments.test_scripts"
    flags = [
        "--arms",
        "gpu-only",
        "--policy",
        f"{here}:own",
        "--policy",
        "kvflow_jax.cache.policy:lru",
    ]
    code, said, _ = run(comparison, *SMALL, *flags)
    assert code == 0
    assert f"{here}:own" in said
    code, _, complaint = run(
        comparison, *SMALL, "--arms", "gpu-only", "--policy", f"{here}:one_axis"
    )
    assert code == 2
    assert "must return numbers of shape" in complaint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host-tokens", "-5"], "at least 0"),
        (["--max-num-seqs", "0"], "at least 1"),
        (["--sizes", "1/2"], "sizes"),
        (["--rate", "inf"], "above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(capsys, monkeypatch, flags, message):
    monkeypatch.setattr("sys.argv", ["compare", *flags])
    with pytest.raises(SystemExit, match="2"):
        comparison.main()
    assert message in capsys.readouterr().err


def test_a_workload_is_scaled_or_says_that_it_cannot_be(run, monkeypatch):
    monkeypatch.setattr(catalogue, "WORKLOADS", ALL)
    flags = ["--workload", "dag-4", "--arms", "kvflow", "--runs", "7", "--rate", "2"]
    code, said, _ = run(comparison, *flags, "--sizes", "64/16/4")
    assert code == 0
    assert "Nothing was evicted" in said
    code, _, complaint = run(comparison, "--workload", "cycle", "--arms", "kvflow", "--rate", "2")
    assert code == 2
    assert "cycle cannot be scaled by --rate; it can by: --sizes" in complaint


def test_a_trace_that_cannot_be_written_is_told_in_a_line(run, tmp_path):
    code, _, complaint = run(
        comparison, *SMALL, "--arms", "kvflow", "--trace", tmp_path / "no" / "t"
    )
    assert code == 2
    assert "the trace cannot be written" in complaint


def test_results_that_cannot_be_written_are_noticed_first(run, tmp_path):
    code, _, complaint = run(comparison, *SMALL, "--json", tmp_path)
    assert code == 2
    assert "cannot be written" in complaint


def test_a_trace_without_hints_finds_on_the_host_what_it_would_under_lru(run, tmp_path):
    trace, path = tmp_path / "trace.jsonl", tmp_path / "found.json"
    chats = [[0] for _ in range(4)]
    lines = []
    for number in range(24):
        chat = chats[number % 4]
        chat += [2 * number + 1, 2 * number + 2]
        length = 512 * len(chat)
        one = {"timestamp": 400 * number, "input_length": length, "output_length": 8}
        lines.append(json.dumps({**one, "hash_ids": chat}))
    trace.write_text("\n".join(lines))
    flags = ["--trace-file", trace, "--machine", "a10g", "--arms", "hicache,kvflow"]
    code, _, _ = run(
        comparison, *flags, "--pool-tokens", 8000, "--host-tokens", 60_000, "--json", path
    )
    assert code == 0
    (arms,) = (found for name, found in json.loads(path.read_text()).items() if name != "machine")
    assert arms["kvflow"]["tokens_from_host"] == arms["hicache"]["tokens_from_host"] > 0
