"""Each method has an end or its divergence at each stepsize."""

from experiments.minimax import stepsizes


def test_ends_and_divergence(monkeypatch):
    monkeypatch.setattr(stepsizes, "QUICK_GAMMAS", (0.1, 10.0))
    monkeypatch.setattr(stepsizes, "QUICK_METHODS", ("D-SGDA", "D-AdaST"))
    result = stepsizes.run(quick=True)
    ends = result.figures["after 1000 calls"]
    assert list(ends) == list(stepsizes.QUICK_METHODS)
    assert ends["D-SGDA"]["mean"] == [None, None]
    assert all(value > 0 for value in ends["D-AdaST"]["mean"] + ends["D-AdaST"]["half_width"])
    assert result.table[1] == ["D-SGDA, 1,000 calls", "diverged", "diverged"]
    assert "D-SGDA 0" in result.findings[0].ours
    assert "0.1: D-AdaST" in result.findings[1].ours
