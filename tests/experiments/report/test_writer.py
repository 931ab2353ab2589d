"""``experiments.report``, from files of results to REPORT.md."""

import json
import shutil

import pytest

from experiments.compare.arms import ARMS
from experiments.report import writer
from tests.experiments.fake_results import all_arms, paper_results


def write(folder, **results):
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))


def test_missing_files_are_named_with_the_commands_that_write_them(command, tmp_path):
    status, _, err = command(writer, "--results", tmp_path)
    assert status == 2
    assert "compare.json does not exist; run: python -m experiments.compare --workload all" in err


def test_a_report_has_tables_figures_and_what_is_missing(command, tmp_path, monkeypatch):
    monkeypatch.setattr(writer.timelines, "draw", lambda folder: ("a.png", "b.png"))
    write(tmp_path, paper_sim=paper_results(), compare={"branching": all_arms()})
    assert command(writer, "--results", tmp_path)[0] == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "| v1 a10g 4096/32/32 | kvflow over hicache | 1.10x | 1.12x | +2% |" in text
    assert "## What of the paper is not reproduced" in text
    assert "Missing: `terms.json`. To write it, run `python -m experiments.terms" in text
    assert all(f"- `{arm}`: " in text for arm in ARMS)
    for name in ("kvflow-over-gpu-only.png", "kvflow-over-hicache.svg", "arms.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000
    assert ">kvflow-cost</text>" in (tmp_path / "figures" / "arms.svg").read_text()


def test_a_file_without_a_figure_is_named_with_the_command_that_writes_it(command, tmp_path):
    arms = all_arms()
    del arms["hicache"]["ttft_p99_s"]
    write(tmp_path, paper_sim=paper_results(), compare={"branching": arms})
    status, _, err = command(writer, "--results", tmp_path)
    assert status == 2
    assert "branching, hicache, has no ttft_p99_s" in err
    assert "python -m experiments.compare --workload all --arms all --json" in err


@pytest.mark.slow
def test_the_committed_report_is_made_of_the_committed_results(command, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(writer.RESULTS, results)
    assert command(writer, "--results", results)[0] == 0
    assert (results / "REPORT.md").read_text() == (writer.RESULTS / "REPORT.md").read_text()
