"""Intervals are Student's."""

import numpy as np
import pytest

from experiments.minimax.seeds import interval


def test_an_interval_in_closed_form():
    # Deviation sqrt(2.5), so 2.776 sqrt(2.5 / 5) on each side.
    one = interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert one.mean == 3
    np.testing.assert_allclose(one.half_width, 2.776 * 0.5**0.5)
    assert str(one) == "3 ±2"


def test_other_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="of 5 seeds, not of 3"):
        interval(np.ones(3))
