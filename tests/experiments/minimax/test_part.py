"""Numbers and tables as they are printed."""

import pytest

from experiments.minimax.part import format_table, rounded, short, spaced


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.4123, "4.4"),
        (0.044, "0.044"),
        (0.0026, "2.6e-03"),
        (3.512e-26, "3.5e-26"),
        (8e128, "8.0e+128"),
        (52.1, "52"),
    ],
)
def test_numbers_have_two_digits(value, text):
    assert short(value) == text


def test_curves_have_four_digits():
    assert rounded([1 / 3, 2e-20 / 3]) == [0.3333, 6.667e-21]


def test_spaced_numbers_have_both_ends_and_none_twice():
    assert spaced(1, 1000, 4) == [1, 10, 100, 1000]
    many = spaced(10, 20, 100)
    assert many == list(range(10, 21))


def test_columns_are_aligned():
    assert format_table([["name", "a"], ["x", "1.25"]]) == "name     a\nx     1.25"
