"""The report's tables."""

import pytest

from experiments.compare.ablation import ARMS_OF_TERMS
from experiments.report import tables
from tests.experiments.fake_results import all_arms, arm_figures, paper_results


def test_cells_and_means_are_beside_the_papers_figures():
    lines = list(tables.paper_cells(paper_results()))
    assert "| v1 a10g 4096/32/32 | kvflow over hicache | 1.10x | 1.12x | +2% |" in lines
    assert "| v1 a10g 4096 | 6 | 1.28x | 1.20x | -6% |" in lines


def test_a_mean_that_the_paper_does_not_report_has_empty_columns():
    paper = {"cells": {}, "means": {"v1 a10g 1024": {"ours": 1.2, "cells": 6}}}
    assert "| v1 a10g 1024 | 6 |  | 1.20x |  |" in list(tables.paper_cells(paper))


def test_real_and_virtual_makespans_are_compared_with_gpu_only():
    cells = {
        "cycle gpu-only": {"real": arm_figures(10.0), "sim": arm_figures(11.0)},
        "cycle kvflow": {"real": arm_figures(5.0), "sim": arm_figures(5.0)},
    }
    text = "\n".join(tables.real({"arms_played": cells}))
    assert "| cycle gpu-only | 10.0 | 11.0 | +10.0% | | |" in text
    assert "| cycle kvflow | 5.0 | 5.0 | +0.0% | 2.00x | 2.20x | +10.0% |" in text
    assert "cycle yes" in text


def test_speeds_show_the_share_of_the_largest_saving():
    lines = list(tables.speeds({"team": all_arms(10.0, 9.0, 8.0)}))
    (row,) = (line for line in lines if line.startswith("| team |"))
    assert row.startswith("| team | llama-3.1-8b, a10g | 1.11x (50%) | 1.25x (100%) |")
    assert tables.shares_closed({"team": all_arms(10.0, 9.0, 8.0)})["hicache"] == 0.5


def test_terms_average_the_gain_by_host_share():
    arms = {name: arm_figures(10.0) for name in ARMS_OF_TERMS} | {"kvflow-cost": arm_figures(8.0)}
    results = {"team": {"0": arms}, "leader": {"0": arms}}
    assert tables.gains_of_cost(results) == {"0": pytest.approx(1.25)}
    assert any("1.25x with host 0" in line for line in tables.terms(results))


def test_every_figure_of_every_arm_is_listed():
    lines = list(tables.everything({"team": all_arms()}))
    assert "<details><summary>team</summary>" in lines
    assert sum(line.startswith("| kvflow") for line in lines) == 4
