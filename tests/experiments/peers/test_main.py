"""The command, with arms that are not run."""

import argparse
import json

import pytest

from experiments.peers import __main__ as peers
from experiments.peers import comparison
from experiments.peers.arms import ARMS, Setup


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Replaces processes, servers and environments; vLLM cannot be built."""
    monkeypatch.setattr(
        comparison,
        "measure_arm",
        lambda arm, *_: {"prefill": 200.0 if arm.is_ours else 100.0, "greedy": [1]},
    )
    monkeypatch.setattr(
        comparison, "run_load", lambda *_, **__: {"makespan_s": 2.0, "ttft_mean_s": 0.1}
    )
    setup = Setup({}, None, "m")
    monkeypatch.setattr(peers, "peer_setup", lambda *_: (setup, {"vllm": "no wheel"}))
    monkeypatch.setattr(peers, "memory_gb_per_s", lambda config: 20.0)
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    return tmp_path


def test_a_quick_run_needs_no_peer(command, measured, tmp_path):
    status, out, _ = command(peers, "--quick", "--json", tmp_path / "out.json")
    assert status == 0
    assert peers.NOT_QUICK in out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["columns"]["kvflow-float32"]["prefill"] == 200.0
    assert figures["columns"]["vllm-float32"]["failed"] == peers.NOT_QUICK
    assert figures["ratios"]["float32"] == {}


def test_a_complete_run_is_kept_by_cpu(command, measured):
    assert command(peers)[0] == 0
    (path,) = measured.glob("peers_*.json")
    figures = json.loads(path.read_text())
    assert figures["columns"]["vllm-float32"]["failed"] == "no wheel"
    assert figures["ratios"]["float32"] == {"prefill": 2.0}
    assert figures["best"]["any"]["prefill"]["ours"] == "kvflow-float32"
    assert figures["ratios"]["agents_cycle_hints"] == 1.0
    assert figures["cpu"]["memory_gb_per_s"] == 20.0


def test_some_arms_are_kept_nowhere(command, measured):
    assert command(peers, "--arms", "kvflow,llama_cpp-F32", "--only", "columns")[0] == 0
    assert not [*measured.glob("*.json")]


def test_arms_are_named_by_engine_or_by_mode():
    assert [arm.name for arm in peers.arms_of("vllm-bfloat16, transformers")] == [
        *("transformers-float32", "transformers-bfloat16", "vllm-bfloat16")
    ]
    assert peers.arms_of("kvflow,transformers,llama_cpp,vllm") == ARMS
    with pytest.raises(argparse.ArgumentTypeError, match="unknown: sglang"):
        peers.arms_of("vllm,sglang")


def test_no_engine_uses_more_than_avx2(command, measured, monkeypatch):
    cpus = []
    monkeypatch.setattr(
        peers, "peer_setup", lambda *args: cpus.append(args[-1]) or (Setup({}, None, "m"), {})
    )
    assert command(peers, "--avx2", "--arms", "kvflow-float32", "--only", "columns")[0] == 0
    assert cpus[0].is_limited
