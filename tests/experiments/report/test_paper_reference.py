"""Speedups that the paper reports, and ours."""

import pytest

from experiments.report.paper_reference import Reported, reported
from tests.experiments.fake_results import all_arms, paper_results


@pytest.mark.parametrize(
    ("paper", "ours", "is_reproduced"),
    [
        (1.24, 1.24, True),
        (1.48, 1.21, False),
        (1.08, 0.98, False),
        (1.1, 1.0, True),
        (0.9, 1.02, False),
    ],
)
def test_a_figure_is_reproduced_when_near_and_on_the_same_side_of_one(paper, ours, is_reproduced):
    assert Reported("peer", "kvflow over hicache", paper, ours).is_reproduced is is_reproduced


def test_cells_means_and_maxima_are_all_compared():
    paper = paper_results()
    paper["cells"]["concurrent h100-pcie 512/256/256 x16"] = {"arms": all_arms()}
    pairs = {figure.name: figure.pair for figure in reported(paper)}
    assert pairs == {
        "v1 a10g 4096/32/32": "kvflow over hicache",
        "v1 a10g 4096 (mean of 6)": "kvflow over hicache",
        "concurrent h100-pcie (max of 1)": "kvflow over gpu-only",
    }


def test_a_difference_has_a_cause_if_one_is_known():
    known = Reported("v1 a10g 8192/32/32", "kvflow over hicache", 1.83, 1.48)
    assert "2 GB/s" in known.cause
    assert not known.is_fitted
    assert Reported("v2", "kvflow over hicache", 1.83, 1.48).cause == "Unknown."
    fitted = Reported("v1 a10g-effective 8192/32/32", "kvflow over hicache", 1.83, 1.84)
    assert fitted.is_fitted
