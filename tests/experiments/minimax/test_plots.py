"""Every figure is drawn, with zeros and divergence among the values."""

import pytest

from experiments.minimax import plots
from experiments.minimax.digits import summary
from experiments.minimax.rivals import METHODS
from tests.experiments.minimax.digits.fakes import BEST, GRAPHS, played


def two_nodes_run(*, zeta, last=1e-9):
    return {
        "calls": [0, 1, 10],
        "x": [0.0, 0.1, 0.5],
        "y": [0.0, 0.3, 1.5],
        "squared_gradient": [1.0, 0.5, last],
        "zeta": zeta,
    }


def rate_run():
    return {"curve": [1e-1, 4e-2], "curve_half_width": [2e-2, 5e-2]}


def digits_figures():
    seen = played()
    return summary.figures(seen, {graph: seen.ratio(graph) for graph in GRAPHS}, BEST, 4000)


FIGURES = {
    "digits": digits_figures(),
    "two-nodes": {
        "D-SGDA": two_nodes_run(zeta=[], last=1e200),
        "D-SGDA, gamma_x .02": two_nodes_run(zeta=[], last=0.0),
        "D-TiAda": two_nodes_run(zeta=[2.0, 0.3]),
        "D-AdaST": two_nodes_run(zeta=[0.0, 0.0]),
    },
    "heterogeneity": {
        "spreads": [0.0, 0.1, 1.0],
        "after": [1_000, 10_000],
        "D-TiAda, noise 0": [[1e-40, 0.0], [1e-4, 1e-4], [1e-2, 2e-2]],
        "D-AdaST, noise 0.1": [[1e-4, 1e-4], [1e-4, 1e-4], [1e-4, 2e-5]],
        "ratio": 1e6,
    },
    "rate": {
        "curve_budgets": [1_000, 10_000],
        "methods": {
            "centralised TiAda": rate_run(),
            "D-AdaST, directed ring (rho 0.96)": rate_run(),
            "D-AdaST, exponential (rho 0.36)": rate_run(),
            "D-TiAda, exponential": rate_run(),
            "GT-DA .02, .1, exponential": rate_run(),
        },
    },
    "stepsizes": {
        "gammas": [0.1, 1.0],
        "budgets": [1_000],
        "after 1000 calls": {
            "D-SGDA": {"mean": [None, None], "half_width": [None, None]},
            "D-TiAda": {"mean": [1e-2, 1e-3], "half_width": [1e-3, 5e-3]},
            "D-AdaST": {"mean": [1e-3, None], "half_width": [1e-4, None]},
        },
    },
}


@pytest.mark.parametrize("name", plots.DRAW)
def test_a_figure_is_drawn_with_its_legend(name, tmp_path):
    drawn = plots.DRAW[name](FIGURES[name], tmp_path)
    assert drawn == f"{tmp_path.name}/minimax-{name}.png"
    assert (tmp_path / f"minimax-{name}.png").stat().st_size > 10_000
    text = (tmp_path / f"minimax-{name}.svg").read_text()
    assert "D-AdaST" in text
    assert "D-TiAda" in text
    # A method that diverged at every stepsize has no line.
    assert ("D-SGDA" in text) == (name in ("digits", "two-nodes"))


def test_every_method_has_a_colour_of_its_own():
    names = {name.partition(",")[0] for name in METHODS} | {"centralised"}
    assert names == set(plots.COLOURS)
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
