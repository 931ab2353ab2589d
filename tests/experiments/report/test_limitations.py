"""The report's limitations: figures not reproduced, cells in which KVFlow is slower."""

from experiments.report import limitations
from tests.experiments.fake_results import arm_figures


def arms(gpu_only, hicache, kvflow, **more):
    return {
        "gpu-only": arm_figures(gpu_only),
        "hicache": arm_figures(hicache),
        **{name: arm_figures(kvflow, **more) for name in limitations.OURS},
    }


def test_the_page_names_figures_not_reproduced_and_cells_with_a_faster_hicache():
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


def test_a_cell_in_two_result_files_counts_once():
    same, small = arms(10.0, 5.0, 4.0), arms(10.0, 9.0, 4.0)
    cells = limitations.every_cell({"cells": {}}, {"team": same}, {"team": {"4": same, "0": small}})
    assert [cell.name for cell in cells] == ["team", "team, host 0 of the device"]
