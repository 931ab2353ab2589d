"""The part has both measures of each method."""

from experiments.minimax import coordinates


def test_both_measures_fall(monkeypatch):
    monkeypatch.setattr(coordinates, "QUICK_STEPS", 1_000)
    monkeypatch.setattr(coordinates, "FACTORS", coordinates.FACTORS[:3])
    result = coordinates.run(quick=True)
    assert [row[0] for row in result.table[1:]] == list(coordinates.NAMES[1:])
    for name in coordinates.NAMES[1:]:
        assert result.figures[name]["squared_gradient"][-1] < 0.5
        assert len(result.figures[name]["squared_distance"]) == 1
