"""D-TiAda keeps its gradient, D-AdaST does not; how exactly is tested with the command."""

import pytest

from experiments.minimax import frozen


def test_only_d_adast_leaves(monkeypatch):
    monkeypatch.setattr(frozen, "JUDGED_STEPS", 1_000)
    monkeypatch.setattr(frozen, "CONSTANT_TO", 1e-2)
    monkeypatch.setattr(frozen, "LEFT_BELOW", 0.7)
    monkeypatch.setattr(frozen, "SHOWN_AFTER", (0, 1_000))
    result = frozen.run(quick=True)
    (finding,) = result.findings
    assert finding.is_reached
    assert "alpha 0.6, beta 0.4" in finding.claim
    stuck, left = (
        result.figures[f"{name}, alpha 0.6, beta 0.4"] for name in ("D-TiAda", "D-AdaST")
    )
    assert stuck[-1] == pytest.approx(stuck[0], rel=1e-2)
    assert left[-1] < 0.7 * left[0]
    assert [len(row) for row in result.table] == [3, 3, 3]
