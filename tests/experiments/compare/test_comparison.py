"""``experiments.compare``, from flags to files."""

import json
import os
import subprocess
import sys

import pytest

from experiments.compare import comparison
from experiments.compare.arms import ARMS
from experiments.workloads import catalogue
from kvflow_jax.cache.policy import lru

ALL = dict(catalogue.WORKLOADS)
SMALL = ("--workload", "branching", "--pool-tokens", 3000, "--host-tokens", 9000)


def first_used(facts):
    return lru(facts)


def test_compare_writes_the_same_bytes_for_the_same_seed(run, tmp_path):
    one, two, other = (tmp_path / name for name in ("one.json", "two.json", "other.json"))
    for path, seed in ((one, 3), (two, 3), (other, 4)):
        status, out, _ = run(comparison, *SMALL, "--arms", "all", "--seed", seed, "--json", path)
        assert status == 0
        assert all(arm in out for arm in ARMS)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    arms = json.loads(one.read_text())["branching"]
    assert arms["gpu-only"]["tokens_from_host"] == 0
    assert arms["kvflow"]["calls"] == 6 * 6


def test_a_custom_policy_is_an_arm(run, tmp_path):
    where = "tests.experiments.compare.test_comparison:first_used"
    path, trace = tmp_path / "out.json", tmp_path / "trace.json"
    flags = ("--arms", "gpu-only", "--policy", where, "--json", path, "--trace", trace)
    status, out, _ = run(comparison, *SMALL, *flags)
    assert status == 0
    assert where in out
    assert where in json.loads(path.read_text())["branching"]
    assert any(event["ph"] == "X" for event in json.loads(trace.read_text()))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "best"), "unknown arm 'best'; known: all, gpu-only"),
        (("--workload", "nothing"), "unknown workload 'nothing'; known: all, branching"),
        (("--machine", "abacus"), "unknown machine 'abacus'"),
        (("--model", "gpt"), "unknown model 'gpt'"),
        (("--pool-tokens", 200), "too few"),
        (
            ("--policy", "nowhere"),
            "kvflow-cost, or module:function; got 'nowhere'",
        ),
        (
            ("--policy", "json:nothing"),
            "the eviction policy 'json:nothing' cannot be imported",
        ),
        (("--trace-file", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_an_error_names_what_is_wrong(run, flags, message):
    status, _, err = run(comparison, "--workload", "branching", *flags)
    assert status == 2
    assert message in err


def test_a_trace_file_is_a_workload(run, tmp_path):
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 400 * i, "input_length": 1024, "output_length": 4, "hash_ids": [0, i % 3]}
        for i in range(9)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    status, out, _ = run(comparison, "--trace-file", trace, "--arms", "gpu-only,hicache")
    assert status == 0
    assert "trace.jsonl" in out


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
    status, _, _ = run(comparison, "--trace-file", trace, "--arms", "gpu-only", "--json", path)
    assert status == 0
    arms = json.loads(path.read_text())[str(trace)]
    assert arms["gpu-only"]["tokens_recomputed"] < 2 * 1000


def test_another_process_writes_the_same_bytes(tmp_path):
    """String hashes differ between processes; no order may depend on them."""
    flags = ["--workload", "branching", "--quick", "--arms", "kvflow,kvflow-cost"]
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.json"
        command = [sys.executable, "-m", "experiments.compare", *flags, "--host-tokens", "20000"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([*command, "--json", path], env=environment, check=True, timeout=300)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def one_axis(facts):
    return facts.last_use


def most_recently_used(facts):
    return -facts.last_use[:, None]


def test_a_policy_that_returns_invalid_keys_is_refused(run):
    here = "tests.experiments.compare.test_comparison"
    flags = [
        "--arms",
        "gpu-only",
        "--policy",
        f"{here}:most_recently_used",
        "--policy",
        "kvflow_jax.cache.policy:lru",
    ]
    status, out, _ = run(comparison, *SMALL, *flags)
    assert status == 0
    assert f"{here}:most_recently_used" in out
    status, _, err = run(comparison, *SMALL, "--arms", "gpu-only", "--policy", f"{here}:one_axis")
    assert status == 2
    assert "must return numbers of shape" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host-tokens", "-5"], "at least 0"),
        (["--max-num-seqs", "0"], "at least 1"),
        (["--sizes", "1/2"], "sizes"),
        (["--rate", "inf"], "above 0"),
    ],
)
def test_invalid_numbers_are_refused(capsys, monkeypatch, flags, message):
    monkeypatch.setattr("sys.argv", ["compare", *flags])
    with pytest.raises(SystemExit, match="2"):
        comparison.main()
    assert message in capsys.readouterr().err


def test_a_flag_that_does_not_scale_a_workload_is_refused(run, monkeypatch):
    monkeypatch.setattr(catalogue, "WORKLOADS", ALL)
    flags = ["--workload", "dag-4", "--arms", "kvflow", "--runs", "7", "--rate", "2"]
    status, out, _ = run(comparison, *flags, "--sizes", "64/16/4")
    assert status == 0
    assert "Nothing was evicted" in out
    status, _, err = run(comparison, "--workload", "cycle", "--arms", "kvflow", "--rate", "2")
    assert status == 2
    assert "cycle cannot be scaled by --rate; it can by: --sizes" in err


def test_a_trace_that_cannot_be_written_is_an_error(run, tmp_path):
    status, _, err = run(comparison, *SMALL, "--arms", "kvflow", "--trace", tmp_path / "no" / "t")
    assert status == 2
    assert "the trace cannot be written" in err


def test_results_that_cannot_be_written_are_an_error(run, tmp_path):
    status, _, err = run(comparison, *SMALL, "--json", tmp_path)
    assert status == 2
    assert "cannot be written" in err


def test_a_trace_without_hints_finds_on_the_host_no_less_than_under_lru(run, tmp_path):
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
    status, _, _ = run(
        comparison, *flags, "--pool-tokens", 8000, "--host-tokens", 60_000, "--json", path
    )
    assert status == 0
    (arms,) = (found for name, found in json.loads(path.read_text()).items() if name != "machine")
    assert arms["kvflow"]["tokens_from_host"] >= arms["hicache"]["tokens_from_host"] > 0
