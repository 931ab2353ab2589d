"""The chance of something new, by how well a context is known."""

import pytest

from kvflow_jax.reuse.escape import MAX_RATE, MIN_RATE, VISIT_BOUNDS, EscapeRates


def test_where_nothing_new_ever_follows_it_is_not_expected_of_contexts_seen_more_often_either():
    rates = EscapeRates()
    before = rates.rate(50, 1)
    for _ in range(40):
        rates.record(1, 1, is_new=False)
    assert rates.rate(1, 1) < 0.02
    assert rates.rate(50, 1) < 0.02 < before
    assert rates.rate(1, 2) == before  # contexts that leave a choice are another matter


def test_where_something_new_follows_often_it_is_expected_but_never_certain():
    rates = EscapeRates()
    for _ in range(500):
        rates.record(3, 2, is_new=True)
    assert rates.rate(3, 2) == MAX_RATE
    for _ in range(5000):
        rates.record(3, 2, is_new=False)
    assert rates.rate(3, 2) >= MIN_RATE


def test_the_version_tells_of_material_changes():
    rates = EscapeRates()
    for _ in range(200):
        rates.record(9, 3, is_new=False)
    version = rates.version
    assert version > 0
    for _ in range(200):
        rates.record(9, 3, is_new=False)
    assert rates.version == version


def test_the_state_survives_a_round_trip():
    rates = EscapeRates()
    for number in range(100):
        rates.record(1 + number % 12, 1 + number % 4, is_new=number % 7 == 0)
    again = EscapeRates.from_list(rates.to_list())
    for visits in (*VISIT_BOUNDS, 100):
        for num_agents in (1, 2, 3, 9):
            assert again.rate(visits, num_agents) == pytest.approx(rates.rate(visits, num_agents))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: [[1.0]] * len(s),
        lambda s: None,
        lambda s: [[2.0, 1.0]] * len(s),
        lambda s: [[float("nan"), 1.0]] * len(s),
    ],
)
def test_another_state_is_refused(change):
    with pytest.raises(ValueError, match="escape"):
        EscapeRates.from_list(change(EscapeRates().to_list()))
