"""The table names who wins, what was left out, and what was not judged."""

import json

from experiments.minimax.digits import summary
from experiments.minimax.digits.setting import EXPONENTIAL, SEEDS
from experiments.minimax.digits.training import Cell, Program
from tests.experiments.minimax.digits.fakes import BEST, GRAPHS, outcome, played


def find(seen, *, is_quick=False):
    ratios = {graph: seen.ratio(graph) for graph in GRAPHS}
    return summary.findings(seen, ratios, BEST, is_quick=is_quick)


def test_goals_are_of_the_exponential_and_the_dense_graph():
    verdicts = {one.ours.partition(":")[0]: one.is_reached for one in find(played())}
    assert [verdicts[graph] for graph in GRAPHS] == [None, True, True]


def test_short_runs_are_not_judged():
    assert {one.is_reached for one in find(played(), is_quick=True)} == {None}


def test_missed_goal_and_winning_rival_are_named():
    wins = {Cell(Program("D-TiAda", 3.0, "dense"), seed): outcome(0.01) for seed in SEEDS}
    (finding,) = (one for one in find(played(wins)) if one.ours.startswith("dense"))
    assert finding.is_reached is False
    assert "D-TiAda wins" in finding.ours


def test_constant_stepsize_that_wins_is_named():
    text = " ".join(one.ours for one in find(played()))
    assert "D-SGDA wins with a constant stepsize" in text


def test_best_stepsize_at_an_end_of_its_sweep_is_named():
    seen = played()
    ratios = {graph: seen.ratio(graph) for graph in GRAPHS}
    ends = BEST | {"D-AdaGrad": 100.0}
    seen = seen.add({Cell(Program("D-AdaGrad", 100.0, EXPONENTIAL), 0): outcome(0.3)})
    text = " ".join(one.ours for one in summary.findings(seen, ratios, ends, is_quick=False))
    assert "D-AdaGrad 0.3 (100, an end of the sweep)" in text
    assert "D-TiAda 0.8 (10)" in text


def test_what_could_not_be_had_is_named():
    text = " ".join(one.claim + one.ours for one in find(played()))
    assert "MNIST is not to be had" in text
    assert "GAN" in text
    assert "left out" in text


def test_table_has_a_row_for_each_method_at_both_stepsizes():
    rows = summary.table(played(), BEST, GRAPHS, is_quick=False)
    assert {len(row) for row in rows} == {7}
    assert [row[0] for row in rows[1:]].count("D-AdaST, 3") == 1
    assert [row[0] for row in rows[1:]].count("D-SGDA, 0.1, best") == 1
    ours = next(row for row in rows if row[0] == "D-AdaST, 3")
    assert ours[2] == "0.04 (0.02 to 0.06)"


def test_table_names_runs_that_diverged():
    changes = {Cell(Program("D-TiAda", 3.0, EXPONENTIAL), seed): None for seed in SEEDS}
    rows = summary.table(played(changes), BEST, GRAPHS, is_quick=False)
    row = next(row for row in rows if row[0] == "D-TiAda, 3")
    assert row[2] == "diverged"
    assert row[4:] == ["-", "-", "-"]


def test_figures_are_json():
    seen = played({Cell(Program("D-SGDA", 1.0, EXPONENTIAL), 0): None})
    ratios = {graph: seen.ratio(graph) for graph in GRAPHS}
    figures = json.loads(json.dumps(summary.figures(seen, ratios, BEST, 4000)))
    assert len(figures["runs"]) == len(seen.by_cell)
    assert sum(run.get("diverged", False) for run in figures["runs"]) == 1
    assert figures["ratios"][EXPONENTIAL]["rival"] == "D-AdaGrad"
