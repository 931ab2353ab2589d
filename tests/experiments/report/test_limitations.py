"""What the report says of the paper, and of where KVFlow does not help."""

import pytest

from experiments.compare.arms import gap_closed
from experiments.paper.real import simulation_errors
from experiments.report import limitations
from experiments.report.paper_reference import Reported


def took(seconds, ttft_s=1.0):
    return {
        "makespan_s": seconds,
        "completion_mean_s": seconds,
        "completion_p99_s": seconds,
        "completions_s": [seconds],
        "ttft_mean_s": ttft_s,
        "ttft_p99_s": ttft_s,
        "stall_share": 0.0,
    }


def arms(gpu_only, hicache, kvflow, **more):
    return {
        "gpu-only": took(gpu_only),
        "hicache": took(hicache),
        **{name: took(kvflow, **more) for name in limitations.OURS},
    }


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


def test_the_page_names_what_is_off_and_where_hicache_is_faster():
    cell = {
        "arms": arms(10.0, 9.0, 9.5),
        "paper": {"kvflow over hicache": {"reported": 2.19, "ours": 9.0 / 9.5}},
    }
    paper = {"cells": {"concurrent h100-pcie 1024/256/256 x64": cell}, "means": {}}
    workloads = {"mix": arms(10.0, 5.0, 5.0, ttft_s=2.0), "coding": arms(10.0, 5.0, 4.0)}
    text = "\n".join(limitations.page(paper, workloads, {}))
    assert "x64 | kvflow over hicache | 2.19x | 0.95x | -57% | 1 |" in text
    assert "1. The difference is in hicache" in text
    assert "beyond the paper within 1% in mix." in text
    lost = text.split("### Cells in which KVFlow is slower")[1]
    assert "Mean completion of a run, s, in 1 of 3 cells:" in lost
    assert "| mix | 1.00 | 2.00 (0.50x) |" in lost
    assert "| coding |" not in lost


def test_cells_that_were_played_twice_count_once():
    same, small = arms(10.0, 5.0, 4.0), arms(10.0, 9.0, 4.0)
    cells = limitations.every_cell({"cells": {}}, {"team": same}, {"team": {"4": same, "0": small}})
    assert [cell.name for cell in cells] == ["team", "team, host 0 of the device"]


def test_what_is_saved_is_measured_by_the_fastest_that_has_the_same_memory():
    played = arms(10.0, 8.0, 6.0) | {"oracle": took(7.0), "unlimited": took(1.0)}
    assert gap_closed(played, "kvflow", "makespan_s") == 1
    assert gap_closed(played, "oracle", "makespan_s") == pytest.approx(0.75)


def test_errors_of_two_arms_add_up_in_their_ratio():
    def both(real_s, virtual_s):
        return {"real": took(real_s), "sim": took(virtual_s)}

    played = {"cycle hicache": both(10.0, 11.0), "cycle kvflow": both(8.0, 7.2)}
    errors = simulation_errors(played)
    assert errors["worst_error"] == pytest.approx(0.1)
    assert errors["worst_ratio_error"] == pytest.approx(1.1 / 0.9 - 1)
    assert errors["same_order"] == {"cycle": True}
    within = {"cycle hicache": both(10.0, 9.0), "cycle kvflow": both(9.5, 10.0)}
    assert simulation_errors(within)["same_order"] == {"cycle": True}
    beyond = {"cycle hicache": both(10.0, 9.0), "cycle kvflow": both(8.5, 10.0)}
    assert simulation_errors(beyond)["same_order"] == {"cycle": False}
