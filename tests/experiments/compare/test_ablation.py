"""``experiments.terms``: results by workload, host share and arm."""

import json

import pytest

from experiments.compare import ablation
from experiments.workloads import catalogue
from tests.experiments.fake_results import arm_figures


@pytest.fixture
def small_loops(monkeypatch, small_catalogue):
    monkeypatch.setattr(ablation, "LOOPS", ("branching",))
    arms = {name: ablation.ARMS_OF_TERMS[name] for name in ("kvflow-guard", "kvflow-cost")}
    monkeypatch.setattr(ablation, "ARMS_OF_TERMS", arms)


def test_a_quick_ablation_runs_one_workload_at_two_host_sizes(command, small_loops, tmp_path):
    path = tmp_path / "terms.json"
    status, out, _ = command(ablation, "--quick", "--json", path)
    assert status == 0
    results = json.loads(path.read_text())
    assert set(results["branching"]) == {"0", "0.5"}
    assert set(results["branching"]["0"]) == {"kvflow-guard", "kvflow-cost"}
    assert "| branching | 0.5 | 1.00x |" in out
    assert list(catalogue.WORKLOADS) == ["branching"]


def test_results_of_other_options_are_refused(command, small_loops, tmp_path):
    path = tmp_path / "terms.json"
    path.with_name("terms.json.partial").write_text("other\n")
    status, _, err = command(ablation, "--json", path)
    assert status == 2
    assert err.startswith("terms: ")


def test_a_gain_is_relative_to_kvflow_guard():
    arms = {"kvflow-guard": arm_figures(6.0), "kvflow-cost": arm_figures(4.0)}
    assert ablation.gain(arms, "kvflow-cost") == 1.5


def test_results_are_nested_by_names_with_spaces():
    nested = ablation.nested({"team 0.5 kvflow, turns": 1, "team 0.5 oracle": 2})
    assert nested == {"team": {"0.5": {"kvflow, turns": 1, "oracle": 2}}}
