"""A multiset that tracks its minimum."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.min_multiset import MinMultiset


def test_an_empty_multiset_has_no_minimum():
    assert MinMultiset().minimum is None
    with pytest.raises(KeyError):
        MinMultiset().remove((1.0,))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_a_multiset_tracks_its_minimum(operations):
    multiset, values = MinMultiset(), []
    for is_add, number in operations:
        value = (1.0, float(number))
        if is_add:
            multiset.add(value)
            values.append(value)
        elif value in values:
            multiset.remove(value)
            values.remove(value)
        assert multiset.minimum == min(values, default=None)
        assert len(multiset) == len(set(values))


def test_a_multiset_forgets_values_that_come_and_go():
    multiset = MinMultiset()
    multiset.add((-1.0,))
    for number in range(1000):
        multiset.add((float(number),))
        multiset.remove((float(number),))
    assert len(multiset._heap) < 20
    assert multiset.minimum == (-1.0,)
