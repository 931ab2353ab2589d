"""Figures of the report."""

import matplotlib
import pytest

from experiments.report import plots
from tests.experiments.fake_results import all_arms, paper_results


@pytest.fixture
def fast_figures(monkeypatch):
    """Writes SVG only, which is faster than PNG; returns the saved figures by name."""
    saved = {}

    def save(figure, folder, name):
        figure.savefig(folder / f"{name}.svg")
        saved[name] = (folder / f"{name}.svg").read_text()
        matplotlib.pyplot.close(figure)
        return name

    monkeypatch.setattr(plots, "save", save)
    return saved


def test_a_grid_shows_ours_and_the_papers_speedups(fast_figures, tmp_path):
    name = plots.speedup_grids(paper_results(), "kvflow", "hicache", {("v1", 4096): 1.28}, tmp_path)
    assert name == "kvflow-over-hicache"
    text = fast_figures[name]
    for shown in ("(1.10)", "(paper 1.28)", "v1 a10g"):
        assert shown in text


def test_no_grid_is_drawn_without_cells(tmp_path):
    assert plots.speedup_grids({"cells": {}}, "kvflow", "hicache", {}, tmp_path) is None


def test_distributions_are_of_workloads_whose_runs_end_at_different_times(fast_figures, tmp_path):
    together = all_arms()
    for figures in together.values():
        figures["completions_s"] = [9.9, 10.0]
    assert plots.distributions({"cycle": together}, tmp_path) is None
    assert plots.distributions({"cycle": together, "team": all_arms()}, tmp_path)
    assert "team, 2 runs" in fast_figures["distributions"]
    assert "cycle" not in fast_figures["distributions"]


def test_all_arms_are_drawn_for_every_workload(fast_figures, tmp_path):
    plots.arms({"team": all_arms(), "cycle": all_arms()}, tmp_path)
    assert ">kvflow-cost</text>" in fast_figures["arms"]
    assert ">team</text>" in fast_figures["arms"]
