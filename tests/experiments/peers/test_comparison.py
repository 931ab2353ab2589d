"""A run of all arms, with processes and servers that are not started."""

import pytest

from experiments.peers import comparison
from experiments.peers.arms import ARMS, Setup
from experiments.peers.comparison import Comparison, build_environments, peer_setup
from experiments.peers.cpu import Cpu
from experiments.peers.drivers.columns import Plan
from experiments.peers.environment import Environment, PeerUnavailableError
from experiments.peers.loads import LOADS
from kvflow_jax.models.loading import embedded

OURS, VLLM = ARMS[0], next(arm for arm in ARMS if arm.name == "vllm-float32")
AVX2 = Cpu("a", (6, 1), ("avx2",))


@pytest.fixture
def run(monkeypatch):
    tokens = {"kvflow": [1, 2, 3], "vllm": [1, 2, 9]}
    monkeypatch.setattr(
        comparison,
        "measure_arm",
        lambda arm, *_: {"greedy": tokens[arm.engine], "prefill": 100.0},
    )
    monkeypatch.setattr(
        comparison, "run_load", lambda *_, **__: {"makespan_s": 2.0, "ttft_mean_s": 0.1}
    )
    return lambda arms, **more: Comparison(
        arms, Setup({}, None, "m"), Plan(), embedded.CONFIG, **more
    )


def test_columns_have_the_agreement_of_greedy_tokens(run, capsys):
    measured = run((OURS, VLLM))
    measured.measure_columns()
    assert measured.columns["kvflow-float32"]["greedy_agreement"] == 3
    assert measured.columns["vllm-float32"]["greedy_agreement"] == 2
    assert "greedy" not in measured.columns["vllm-float32"]


def test_a_skipped_arm_has_its_reason_and_no_ratio(run, capsys):
    measured = run((OURS, VLLM), skipped={"vllm-float32": "no compiler"})
    measured.measure_columns()
    measured.run_loads(LOADS)
    assert measured.columns["vllm-float32"] == {"precision": "float32", "failed": "no compiler"}
    assert measured.makespans()["vllm-float32"] == {}
    assert "no compiler" in capsys.readouterr().out
    assert measured.is_complete


def test_a_run_without_this_engine_in_float32_is_not_complete(run):
    measured = run((OURS, VLLM), skipped={OURS.name: "no model"})
    measured.run_loads(LOADS)
    assert not measured.is_complete


def test_peers_get_each_load_once(run):
    without_server = next(arm for arm in ARMS if not arm.has_server)
    measured = run((OURS, VLLM, without_server))
    measured.run_loads(LOADS)
    assert measured.loads["kvflow-float32"].keys() == LOADS.keys()
    assert [*measured.loads["vllm-float32"]] == ["agents_cycle", "coding_sessions"]
    assert without_server.name not in measured.loads


def test_a_peer_that_cannot_be_built_leaves_the_others(monkeypatch, tmp_path):
    def ensure(self):
        if self.peer == "vllm":
            raise PeerUnavailableError("no wheel")

    monkeypatch.setattr(Environment, "ensure", ensure)
    monkeypatch.setattr(comparison.PeerWeights, "ensure", lambda self: None)
    environments, reasons = build_environments(("vllm", "llama_cpp"), tmp_path, AVX2)
    assert [*environments] == ["llama_cpp"]
    assert reasons == {"vllm": "no wheel"}
    setup, _ = peer_setup(("vllm", "llama_cpp"), "m", tmp_path, AVX2)
    assert setup.weights is not None
