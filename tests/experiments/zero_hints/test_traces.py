"""Agents' sessions in virtual time: the command as a whole, and its figures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.compare.run_cell import PAGE, CellResult
from experiments.workloads.base import Call, Run, Workload
from experiments.zero_hints import traces
from experiments.zero_hints.traces import HICACHE, KVFLOW, QUICK_SESSIONS, compared, read_runs
from kvflow_jax.sim import machines
from tests.experiments.zero_hints.session_files import BLOCK, NEW, NUM_CALLS, write_sessions

SCALE = 2


@pytest.fixture
def sessions(tmp_path):
    return write_sessions(tmp_path / "sessions", num_sessions=12)


def play(command, tmp_path, trace, *flags):
    file = tmp_path / "traces.json"
    asked = ("--trace-file", trace, "--scale", SCALE, "--sessions-at-once", 4, "--json", file)
    status, out, _ = command(traces, *asked, *flags)
    assert status == 0
    return json.loads(file.read_text()), out


@pytest.mark.parametrize("keys", [(), ("--one-key",)])
def test_both_arms_play_what_a_client_sends_within_what_belady_could_hit(
    keys, sessions, tmp_path, command
):
    figures, out = play(command, tmp_path, sessions, *keys)
    assert (figures["sessions"], figures["calls"]) == (12, 12 * NUM_CALLS)
    lens = [BLOCK * (4 + NEW * number) // SCALE for number in range(NUM_CALLS)]
    assert figures["prompt_tokens"] == 12 * sum(lens)
    hits = figures["hit_tokens"]
    # A call could find at most what the one before it of its session has left.
    assert 0 < hits[HICACHE] <= hits["belady"] <= 12 * sum(lens[:-1])
    assert 0 < hits[KVFLOW] <= 12 * sum(lens[:-1])
    assert len(figures["hits_over_hicache_by_tenth"]) == 10
    found = [one for one in figures["hits_over_hicache_by_tenth"] if one is not None]
    assert figures["worst_tenth"] == min(found)
    assert f"worst_tenth{'':15}{figures['worst_tenth']:.4f}" in out


def test_calls_of_agents_in_a_folder_of_apps_send_nothing(tmp_path, command):
    for app in ("one", "two"):
        (tmp_path / app).mkdir()
        text = app * 200
        lines = [
            {"timestamp": n, "input": text * (n + 1), "output": "yes", "session_id": f"{app}-s"}
            for n in range(3)
        ]
        (tmp_path / app / "calls.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figures, _ = play(command, tmp_path, tmp_path, "--pool-share", 4)
    assert (figures["sessions"], figures["calls"]) == (2, 6)
    assert figures["hit_tokens"][KVFLOW] == figures["hit_tokens"][HICACHE] > 0
    assert figures["belady_gap_closed"] is None or figures["belady_gap_closed"] == 0


def test_a_quick_run_reads_the_first_sessions(sessions):
    runs = read_runs(sessions, SCALE, True)
    names = sorted(file.stem for file in sessions.iterdir())
    assert [run.workflow_id for run in runs] == names[:QUICK_SESSIONS]
    # Sessions share no tokens: what they share is not in the trace.
    assert (runs[0].calls[0].parts[0] != runs[1].calls[0].parts[0]).any()


def test_what_is_no_trace_is_refused(tmp_path, command, capsys):
    for trace in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(SystemExit):
            command(traces, "--trace-file", trace)
    assert "neither .json files nor .jsonl files" in capsys.readouterr().err


def test_tenths_are_in_the_order_in_which_sessions_begin():
    tokens = np.arange(4 * PAGE, dtype=np.int32)
    calls = (Call("a", (tokens,), 0, 1), Call("a", (tokens,), 0, 1, (0,)))
    workload = Workload("w", tuple(Run("t", f"r{n}", None, calls) for n in range(20)))

    def result(num_cached):
        records = [
            SimpleNamespace(
                tenant="t", workflow_id=f"r{n}", number=number, start_s=number, num_cached=cached
            )
            for n, cached in enumerate(num_cached)
            for number in range(2)
        ]
        return CellResult({"completion_mean_s": 2.0, "latency_mean_s": 1.0}, records)

    setting = traces.Setting(
        machines.shape(traces.MODEL), machines.machine(traces.MACHINE), 5 * PAGE, 0
    )
    results = {HICACHE: result([PAGE] * 20), KVFLOW: result([PAGE, 0, 0, 0] + [PAGE] * 16)}
    figures = compared(workload, setting, results)
    assert figures["hits_over_hicache_by_tenth"] == [0.5, 0.0] + [1.0] * 8
    assert figures["worst_tenth"] == 0.0
    assert figures["hit_tokens"]["belady"] == 39 * 3 * PAGE  # one prompt for all
    assert figures["belady_gap_closed"] == pytest.approx(-6 / (39 * 3 - 40))
    nothing = {arm: result([0] * 20) for arm in results}
    assert compared(workload, setting, nothing)["worst_tenth"] is None
