"""Real execution beside virtual time: errors, and one profile for all arms."""

import json
from types import SimpleNamespace

import pytest

from experiments.compare.arms import ARMS
from experiments.paper import real
from experiments.paper.real import simulation_errors
from tests.experiments.fake_results import arm_figures


def test_the_errors_of_two_arms_add_up_in_their_ratio():
    def both(real_s, virtual_s):
        return {"real": arm_figures(real_s), "sim": arm_figures(virtual_s)}

    measured = {"cycle hicache": both(10.0, 11.0), "cycle kvflow": both(8.0, 7.2)}
    errors = simulation_errors(measured)
    assert errors["worst_error"] == pytest.approx(0.1)
    assert errors["worst_ratio_error"] == pytest.approx(1.1 / 0.9 - 1)
    assert errors["same_order"] == {"cycle": True}
    within = {"cycle hicache": both(10.0, 9.0), "cycle kvflow": both(9.5, 10.0)}
    assert simulation_errors(within)["same_order"] == {"cycle": True}
    beyond = {"cycle hicache": both(10.0, 9.0), "cycle kvflow": both(8.5, 10.0)}
    assert simulation_errors(beyond)["same_order"] == {"cycle": False}


class FakeMachine:
    """Takes 10 s for an arm, 11 s in virtual time, and records the times profiles are fitted to."""

    fitted = ()

    def __init__(self, loaded):
        self._num_timed = 0

    def times(self):
        self._num_timed += 1
        return [self._num_timed]

    def run(self, workload, arm, setting):
        return arm_figures(10.0), 2e9

    def profile(self, times, link_bytes_per_s):
        FakeMachine.fitted = list(times)
        return SimpleNamespace(to_dict=lambda: {"link_bytes_per_s": link_bytes_per_s})

    def simulate(self, workload, arm, setting, profile):
        return arm_figures(11.0)


def test_one_profile_is_fitted_to_the_times_of_all_arms(tmp_path, monkeypatch, capsys):
    loaded = SimpleNamespace(config=SimpleNamespace(vocab_size=50))
    monkeypatch.setattr(real, "load_model", lambda *_, **__: loaded)
    monkeypatch.setattr(real, "use_compilation_cache", lambda _: None)
    monkeypatch.setattr(real, "Machine", FakeMachine)
    options = SimpleNamespace(json=tmp_path / "real.json", model="m", quick=True, seed=0)
    assert real.main(["gpu-only", "kvflow", "oracle", "unlimited"], options) == 0
    assert FakeMachine.fitted == [[1], [2], [3], [4], [5], [6]]  # three workloads, two arms
    results = json.loads(options.json.read_text())
    assert results["arms"] == ["gpu-only", "kvflow"]
    assert results["arms_played"]["cycle kvflow"]["profile"] == {"link_bytes_per_s": 2e9}
    assert results["worst_error"] == pytest.approx(0.1)
    assert "largest error of virtual time: 10.0%" in capsys.readouterr().out


def test_a_machine_gives_the_arm_its_host_tier_and_an_emulated_link(monkeypatch):
    configs = []
    monkeypatch.setattr(real.fit_profile, "StepTimer", lambda loaded: None)
    monkeypatch.setattr(
        real, "run_on_engine", lambda loaded, config, workload, **_: configs.append(config)
    )
    monkeypatch.setattr(real.jax, "default_backend", lambda: "cpu")
    shape = SimpleNamespace(kv_bytes_per_token=1024)
    monkeypatch.setattr(real, "ModelShape", SimpleNamespace(of=lambda *_, **__: shape))
    machine = real.Machine(SimpleNamespace(name="tiny", config=None))
    (workload, setting), *_ = real.scaled_workloads(50, 0, True)
    for arm in ("gpu-only", "kvflow", "unlimited"):
        machine.run(workload, ARMS[arm], setting)
    gpu_only, kvflow, unlimited = configs
    assert gpu_only.cache.host_cache_gib is None
    assert kvflow.cache.host_cache_gib == setting.host_tokens * 1024 / 2**30
    assert kvflow.cache.link_ratio == real.LINK_RATIO
    assert unlimited.num_pages > workload.total // real.PAGE > kvflow.num_pages
