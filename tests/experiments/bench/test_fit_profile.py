"""The fit of a hardware profile to timed steps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import fit_profile
from experiments.bench.fit_profile import DECODES, PREFILLS, Sample, StepTimer, fit
from kvflow_jax.models.families import PRESETS
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, SMOLLM2_135M


class FakeRunner:
    """Runs a step in no time."""

    def __init__(self, *_):
        self.num_steps = 0

    def submit(self, batch):
        self.num_steps += 1
        return SimpleNamespace(result=lambda: None)


@pytest.fixture
def timer(monkeypatch):
    monkeypatch.setattr(fit_profile, "ModelRunner", FakeRunner)
    config = PRESETS["smollm2-135m"]
    model = SimpleNamespace(dtype="float32")
    return StepTimer(SimpleNamespace(config=config, model=model, params=None, name="smollm2-135m"))


def samples_of(timer, profile):
    """Return the steps as a machine of this profile would take."""
    works = [sample.work for sample in timer.samples(timer.times(1))]
    shape = SMOLLM2_135M
    return [Sample(work, fit_profile.predicted_s(shape, profile, work), 1e-3) for work in works]


def test_every_step_is_timed_in_every_round(timer):
    times = timer.times(3)
    assert times.shape == (3, len(PREFILLS) + len(DECODES), 2)
    works = [sample.work for sample in timer.samples(times)]
    assert works[1].num_pairs > works[0].num_pairs  # the same tokens after a context
    assert works[-1].num_rows == DECODES[-1][0]


def test_the_rates_of_a_roofline_are_recovered(timer):
    machine = fit_profile.Profile("m", 1e11, 5e10, 2e10, 5e-3, 1e-3, 1e8, 0.0)
    samples = samples_of(timer, machine)
    fitted = fit(SMOLLM2_135M, samples)
    for rate in ("flops_per_s", "attention_flops_per_s", "mem_bytes_per_s", "launch_s"):
        assert getattr(fitted, rate) == pytest.approx(getattr(machine, rate), rel=0.05)
    assert fitted.link_ratio(SMOLLM2_135M) == pytest.approx(A10G.link_ratio(LLAMA_3_1_8B))
    assert fit_profile.figures(SMOLLM2_135M, fitted, samples)["worst_error"] < 0.05


def test_steps_that_are_all_launch_give_finite_rates(timer):
    samples = [Sample(one.work, 1e-2, 1e-3) for one in timer.samples(timer.times(1))]
    fitted = fit(SMOLLM2_135M, samples)
    assert fitted.launch_s == pytest.approx(1e-2)
    rates = (fitted.flops_per_s, fitted.attention_flops_per_s, fitted.mem_bytes_per_s)
    assert np.isfinite(rates).all()
    assert min(rates) > 0


def test_a_command_writes_a_profile(command, monkeypatch, tmp_path, timer):
    monkeypatch.setattr(fit_profile, "use_compilation_cache", lambda _: None)
    loaded = SimpleNamespace(name="smollm2-135m", config=PRESETS["smollm2-135m"])
    monkeypatch.setattr(fit_profile, "load_model", lambda *_, **__: loaded)
    monkeypatch.setattr(fit_profile, "StepTimer", lambda _: timer)
    path = tmp_path / "profile.json"
    assert command(fit_profile, "--json", path)[0] == 0
    assert fit_profile.Profile.read(path).name == "this-machine"
    assert len(json.loads(path.read_text())["steps"]) == len(PREFILLS) + len(DECODES)


def test_guesses_that_go_round_in_a_circle_end(timer):
    """Timings of a loaded machine, whose steps of decoding are now bound by one thing, now not."""
    works = [sample.work for sample in timer.samples(timer.times(1))]
    rng = np.random.default_rng(0)
    for _ in range(300):
        times = 10 ** rng.uniform(-4, -1, len(works))
        fitted = fit(SMOLLM2_135M, [Sample(w, s, 1e-3) for w, s in zip(works, times, strict=True)])
        assert np.isfinite([fitted.flops_per_s, fitted.mem_bytes_per_s, fitted.launch_s]).all()
