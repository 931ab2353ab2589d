"""The policies of the ablation: ``kvflow_cost`` without one of its terms."""

import pytest

from experiments.compare.ablation_policies import kvflow_chance, kvflow_depth
from kvflow_jax.cache.next_read import NEVER, RUNNING, SUFFIX, UNKNOWN, scheduled
from kvflow_jax.cache.policy import kvflow_cost
from tests.cache.test_policy import eviction_order, table_of


@pytest.mark.parametrize("order", [kvflow_chance, kvflow_depth])
def test_blocks_without_a_coming_read_are_evicted_first_whatever_they_cost(order):
    reads = [scheduled(1.0), NEVER, SUFFIX, UNKNOWN, scheduled(2.0), RUNNING]
    assert eviction_order(order, table_of(reads)) == [2, 1, 3, 4, 0, 5]


def test_without_the_chance_an_unlikely_next_read_counts_as_certain():
    unlikely_next, certain_later = scheduled(1.0, chance=0.1), scheduled(4.0)
    table = table_of([unlikely_next, certain_later])
    assert eviction_order(kvflow_cost, table) == eviction_order(kvflow_chance, table) == [0, 1]
    assert eviction_order(kvflow_depth, table) == [1, 0]


def test_without_the_cost_deep_blocks_count_as_shallow_ones():
    deep = table_of([scheduled(3.0), scheduled(2.0)], depth=[2000, 0])
    assert eviction_order(kvflow_cost, deep) == eviction_order(kvflow_depth, deep) == [1, 0]
    assert eviction_order(kvflow_chance, deep) == [0, 1]
