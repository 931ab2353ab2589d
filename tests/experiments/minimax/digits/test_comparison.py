"""The part plays the demanded runs, tunes each method, and returns what the command prints."""

import dataclasses

import pytest

from experiments.minimax.digits import comparison, setting
from experiments.minimax.part import format_table
from tests.experiments.minimax.digits.fakes import BEST, GRAPHS, played


@pytest.fixture
def trained(monkeypatch, digits):
    """Replaces training by made-up outcomes; returns the list of requested cells."""
    asked = []

    class FakeTrainer:
        def __init__(self, digits, graphs, calls):
            asked.append((tuple(graph.name for graph in graphs), calls))

        def train(self, cells):
            cells = list(dict.fromkeys(cells))
            asked.extend(cells)
            return {cell: known[cell] for cell in cells}

    known = dict(played().by_cell)
    # The sweep is to find these.
    known |= {
        cell: dataclasses.replace(one, squared_gradients=one.squared_gradients / 2)
        for cell, one in known.items()
        if cell.program.gamma_x == BEST[cell.program.method]
    }
    monkeypatch.setattr(comparison, "Trainer", FakeTrainer)
    return asked


def test_whole_form_plays_each_run_once_and_judges(trained):
    result = comparison.run(quick=False)
    (graphs, calls), *cells = trained
    assert (graphs, calls) == (GRAPHS, setting.CALLS)
    assert len(set(cells)) == len(cells)
    assert result.figures["best_gamma_x"] == BEST
    assert result.demanded == {
        "digits_ratio_exponential": pytest.approx(10),
        "digits_ratio_dense": pytest.approx(10),
    }
    assert "D-NeAda, 10, best" in format_table(result.table)


def test_quick_form_has_one_graph_and_demands_nothing(trained):
    result = comparison.run(quick=True)
    (graphs, calls), *cells = trained
    assert (graphs, calls) == ((setting.EXPONENTIAL,), setting.QUICK_CALLS)
    assert len(cells) == 4 + 3
    assert "best" not in format_table(result.table)
    assert result.demanded == {}
    assert {one.is_reached for one in result.findings} == {None}
