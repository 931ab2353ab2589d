"""``python -m experiments.zero_hints``."""

import json

import pytest

from experiments.zero_hints import __main__ as zero_hints
from experiments.zero_hints.arms import DECLARED, HICACHE, ZERO
from experiments.zero_hints.cells import GAIN_CELLS, HARD_CELLS


def cell(hicache, declared, zero, right=None):
    sums = {
        "latency_s": {HICACHE: hicache, DECLARED: declared, ZERO: zero},
        "num_computed": {HICACHE: 3, DECLARED: 1, ZERO: 2},
        "num_calls": 5,
    }
    return {
        "windows": dict.fromkeys(("50", "200", "all"), sums),
        "makespan_s": {HICACHE: hicache, DECLARED: declared, ZERO: zero},
        "right": dict.fromkeys(("50", "200", "all"), right),
    }


@pytest.fixture
def results():
    found = {
        f"gain {name} {seed}": cell(10.0, 8.0, 8.5, 0.8) for name in GAIN_CELLS for seed in (1, 2)
    }
    found |= {f"gain {name} 1": cell(10.0, 9.9, 10.0) for name in HARD_CELLS}
    return found | {
        f"catalogue mix 0.5 {seed}": {HICACHE: 2.0, ZERO: 1.9 + 0.2 * seed} for seed in (0, 1)
    }


def test_the_headline_is_that_of_the_worst_cell(results):
    results["gain team 1"] = results["gain team 2"] = cell(10.0, 8.0, 9.0, 0.7)
    figures = zero_hints.headline(results)
    assert figures["share_of_declared_gain_50"] == pytest.approx(0.5)
    assert figures["next_agent_right"] == pytest.approx(0.7 / 0.854)
    assert figures["worst_cell_vs_hicache"] == 1.0  # the hard ones; that of ``mix`` is above
    assert dict(zero_hints.ratios_to_hicache(results))["catalogue mix 0.5"] == pytest.approx(
        (2.0 / 1.9 + 2.0 / 2.1) / 2
    )


def test_cells_without_a_declared_gain_have_no_share(results):
    for name in GAIN_CELLS:
        for seed in (1, 2):
            results[f"gain {name} {seed}"] = cell(10.0, 9.9, 9.0)
    figures = zero_hints.headline(results)
    assert figures["share_of_declared_gain_50"] is None
    assert figures["next_agent_right"] is None
    assert "| - |" in zero_hints.tables(results)


def test_a_run_writes_its_figures_and_every_cell(command, monkeypatch, tmp_path):
    monkeypatch.setattr(zero_hints, "measure_gain", lambda *args: cell(10.0, 8.0, 8.5, 0.8))
    monkeypatch.setattr(zero_hints, "measure_catalogue", lambda *args: {HICACHE: 2.0, ZERO: 2.0})
    monkeypatch.setattr(zero_hints, "identity_figures", dict)
    monkeypatch.setattr(zero_hints, "recognition_figures", dict)
    path = tmp_path / "figures.json"
    status, out, _ = command(zero_hints, "--quick", "--json", path)
    assert status == 0
    figures = json.loads(path.read_text())
    assert figures["share_of_declared_gain_50"] == pytest.approx(0.75)
    assert len(figures["cells"]) == len(GAIN_CELLS) + len(HARD_CELLS) + 2
    assert "share_of_declared_gain_50" in out


def test_a_part_runs_alone(command, monkeypatch):
    monkeypatch.setattr(zero_hints, "measure_gain", lambda *args: cell(10.0, 8.0, 8.5, 0.8))
    status, out, _ = command(zero_hints, "--quick", "--only", "cycle")
    assert status == 0
    assert "| cycle |" in out
    assert "| team |" not in out
    with pytest.raises(SystemExit):
        command(zero_hints, "--only", "nothing")


def test_a_measured_cell_has_every_window(command):
    found = zero_hints.measure_gain(HARD_CELLS["shuffled"], 1, True)
    assert set(found["windows"]) == {"50", "200", "all"}
    assert found["windows"]["all"]["num_calls"] == 60
    assert set(zero_hints.measure_catalogue("cycle", 4.0, 1)) == {HICACHE, ZERO}
