"""Timelines of the paper's cycle, at a small size."""

import matplotlib
import pytest

from experiments.report import timelines
from experiments.workloads.base import Sizes


@pytest.fixture
def figures(monkeypatch):
    """Draws a small cycle; returns the saved figures as SVG text by name."""
    saved = {}

    def save(figure, folder, name):
        figure.savefig(folder / f"{name}.svg")
        saved[name] = (folder / f"{name}.svg").read_text()
        matplotlib.pyplot.close(figure)
        return f"{folder.name}/{name}.svg"

    monkeypatch.setattr(timelines, "save", save)
    monkeypatch.setattr(timelines, "SIZES", Sizes(256, 16, 8))
    monkeypatch.setattr(timelines, "pool_tokens", lambda *_: 4 * 256 + 64)
    return saved


def test_a_timeline_shows_every_arm_with_its_steps_copies_and_stalls(figures, tmp_path):
    assert timelines.draw(tmp_path) == (
        f"{tmp_path.name}/residency.svg",
        f"{tmp_path.name}/lanes.svg",
    )
    for arm in timelines.PAPER_ARMS:
        assert f">{arm}</text>" in figures["residency"]
        assert f">{arm}</text>" in figures["lanes"]
    for label in timelines._LEGEND:
        assert f">{label}</text>" in figures["lanes"]
    assert ">agent 1</text>" in figures["lanes"]
    assert "round 0, computes all" in figures["residency"]
