"""``experiments.cycle``: real arms beside virtual ones, with a machine that takes no time."""

import json
from types import SimpleNamespace

import pytest

from experiments.compare.arms import ARMS, PAPER_ARMS
from experiments.measure import THIS_MACHINE
from experiments.paper import cycle
from experiments.paper.cycle import simulation_errors
from kvflow_jax.sim.machines import SMOLLM2_135M
from kvflow_jax.sim.profile import Profile
from tests.experiments.fake_results import arm_figures

FIGURES = {
    **arm_figures(1.0),
    **{"latency_mean_s": 1.0, "latency_p99_s": 1.0, "fixed_recomputed_max": 0},
}


class FakeMachine:
    """Runs every arm in 1 s over a link of 3 GB/s; profiles are those of the stored results."""

    def __init__(self, loaded):
        pass

    def times(self):
        return []

    def run(self, workload, arm, setting):
        return {**FIGURES, "compiles": 0}, 1.0 if arm is ARMS["gpu-only"] else 3e9

    def profile(self, times, link_bytes_per_s):
        assert len(times) == 1 + len(PAPER_ARMS)
        rates = Profile.read(THIS_MACHINE).to_dict()
        return Profile(**{**rates, "link_bytes_per_s": link_bytes_per_s})


@pytest.fixture
def fake_machine(monkeypatch):
    monkeypatch.setattr(cycle, "use_compilation_cache", lambda _: None)
    loaded = SimpleNamespace(name="smollm2-135m", config=None)
    monkeypatch.setattr(cycle, "load_model", lambda *_, **__: loaded)
    shapes = SimpleNamespace(of=lambda *_, **__: SMOLLM2_135M)
    monkeypatch.setattr(cycle, "ModelShape", shapes)
    monkeypatch.setattr(cycle, "Machine", FakeMachine)


def test_a_quick_cycle_runs_real_virtual_and_the_papers_setting(command, fake_machine, tmp_path):
    path = tmp_path / "cycle.json"
    status, out, _ = command(cycle, "--quick", "--json", path)
    assert status == 0
    assert "real kvflow: 1.0 s" in out
    results = json.loads(path.read_text())
    assert results["rounds"] == 1
    assert results["profiles"]["kvflow"]["link_bytes_per_s"] == 3e9
    assert results["real.kvflow.makespan_s"] == 1.0
    assert results["sim.gpu-only.calls"] == 10
    assert results["a10g_kvflow_over_hicache"] >= 1.0
    assert results["worst_error"] > 0


def test_a_simulated_cycle_needs_no_machine(command, monkeypatch, tmp_path):
    monkeypatch.setattr(cycle, "load_model", None)
    path = tmp_path / "cycle.json"
    assert command(cycle, "--quick", "--mode", "sim", "--rounds", 2, "--json", path)[0] == 0
    results = json.loads(path.read_text())
    assert results["rounds"] == 2
    assert "real_speedup" not in results
    assert results["sim.kvflow.calls"] == 20


def test_errors_are_relative_to_the_real_times():
    real = {"hicache": FIGURES, "kvflow": {**FIGURES, "makespan_s": 0.5}}
    virtual = {"hicache": {**FIGURES, "makespan_s": 1.2}, "kvflow": {**FIGURES, "makespan_s": 0.5}}
    errors = simulation_errors(real, virtual)
    assert errors["worst_error"] == pytest.approx(0.2)
    assert errors["same_order"]
