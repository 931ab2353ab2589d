"""The table and the figures have every method; float64 is tested with the command."""

import pytest

from experiments.minimax import two_nodes


@pytest.fixture
def short_run(monkeypatch):
    monkeypatch.setattr(two_nodes, "STEPS", 1_000)
    monkeypatch.setattr(two_nodes, "SHOWN_AFTER", (0, 100, 1_000))


def test_every_method_is_in_the_table_and_the_figures(short_run):
    result = two_nodes.run(quick=False)
    labels = [label for label, _, _ in two_nodes.RUNS]
    assert [row[0] for row in result.table[1:]] == labels == list(result.figures)
    for figure in result.figures.values():
        curves = [figure[key] for key in ("calls", "x", "y", "squared_gradient")]
        assert len({len(curve) for curve in curves}) == 1
        assert figure["calls"][0] == 0
        assert len(figure["zeta"]) in (0, len(figure["calls"]) - 1)
    # A step of it takes two calls for gradients.
    assert result.figures["DM-HSGD, gamma_x .02"]["calls"][1] == 2
    dadast = result.figures["D-AdaST"]["after"]
    assert dadast[0] == 1
    assert result.demanded["quadratic_dadast_gradient"] == dadast[-1]
    # A run of 1,000 steps reaches neither goal but that of D-TiAda.
    assert [one.is_reached for one in result.findings] == [False, True, None, None]
