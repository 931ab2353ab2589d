"""The part has each method with its interval, exponent and curve."""

import pytest

from experiments.minimax import rate


def test_all_methods_and_what_is_judged(monkeypatch):
    monkeypatch.setattr(rate, "BUDGETS", (1_000, 2_000))
    monkeypatch.setattr(rate, "GRAPHS", rate.GRAPHS[:2])
    monkeypatch.setattr(rate, "RIVALS", rate.RIVALS[-1:])
    result = rate.run(quick=False)
    methods = result.figures["methods"]
    assert [row[0] for row in result.table[1:]] == list(methods)
    assert next(iter(methods)) == "centralised TiAda"
    assert list(methods)[-1] == "DM-HSGD .02, .1, exponential"
    assert len(methods) == 1 + len(rate.GRAPHS) + 1
    for method in methods.values():
        assert len(method["curve"]) == len(result.figures["curve_budgets"])
        assert method["mean"][-1] == pytest.approx(method["curve"][-1], rel=1e-3)
        assert all(width > 0 for width in method["half_width"])
    is_judged = [finding.is_reached is not None for finding in result.findings]
    assert is_judged == [True, False, True, False]
