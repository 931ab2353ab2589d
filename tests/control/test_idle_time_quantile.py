"""The estimate of a long idle time."""

import random

import pytest

from kvflow_jax.control.idle_time_quantile import QUANTILE, IdleTimeQuantile


@pytest.mark.parametrize("mean_s", [0.05, 4.0, 300.0])
def test_the_estimate_converges_to_the_quantile_of_recent_idle_times(mean_s):
    rng, idle_times = random.Random(0), IdleTimeQuantile()
    for _ in range(1000):
        idle_times.observe(rng.uniform(0.0, 2.0 * mean_s))
    num_shorter = 0
    for _ in range(2000):
        idle_s = rng.uniform(0.0, 2.0 * mean_s)
        num_shorter += idle_s <= idle_times.long_s
        idle_times.observe(idle_s)
    assert num_shorter / 2000 == pytest.approx(QUANTILE, abs=0.05)


def test_the_estimate_stays_above_zero():
    idle_times = IdleTimeQuantile()
    for _ in range(10_000):
        idle_times.observe(0.0)
    assert idle_times.long_s >= 1e-3
