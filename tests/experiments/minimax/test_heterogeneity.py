"""Unlike nodes part D-TiAda from D-AdaST, alike ones do not."""

import pytest

from experiments.minimax import heterogeneity


def test_only_unlike_nodes_need_tracking(monkeypatch):
    monkeypatch.setattr(heterogeneity, "STEPS", 1_000)
    result = heterogeneity.run(quick=False)
    untracked, tracked = (result.figures[f"{name}, noise 0"] for name in ("D-TiAda", "D-AdaST"))
    assert untracked[0] == pytest.approx(tracked[0])
    for spread, one, other in zip(heterogeneity.SPREADS, untracked, tracked, strict=True):
        assert spread == 0 or one[-1] > 50 * other[-1]
    assert len(result.table) == 1 + 4 * len(heterogeneity.SPREADS)
    assert len(result.findings) == 3
    assert result.findings[0].is_reached is False
    assert heterogeneity.run(quick=True).findings[0].is_reached is None
