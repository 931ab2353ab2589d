"""The estimate of a time between calls."""

import math
import random

import pytest

from kvflow_jax.reuse.delay import MAX_S, MIN_S, WINDOW, Delay


def test_quantiles_are_those_of_a_log_normal_distribution():
    rng, delay = random.Random(0), Delay()
    seconds = [rng.lognormvariate(1.0, 0.8) for _ in range(4000)]
    for value in seconds:
        delay = delay.observe(value)
    assert delay.num_seen == WINDOW
    later = [rng.lognormvariate(1.0, 0.8) for _ in range(4000)]
    for share in (0.5, 0.9):
        within = sum(value <= delay.quantile(share) for value in later) / len(later)
        assert within == pytest.approx(share, abs=0.15)
    assert delay.quantile(0.1) < delay.quantile(0.5) < delay.mean_s < delay.quantile(0.99)


def test_few_equal_delays_are_no_certainty():
    delay = Delay().observe(2.0)
    assert delay.quantile(0.5) == pytest.approx(2.0)
    assert delay.quantile(0.95) > 2.5
    for _ in range(100):
        delay = delay.observe(2.0)
    assert delay.quantile(0.95) < 2.5


def test_the_estimate_follows_a_change():
    delay = Delay()
    for seconds in [0.1] * 500 + [30.0] * 100:
        delay = delay.observe(seconds)
    assert delay.quantile(0.5) > 15.0


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_what_is_no_time_counts_nothing(seconds):
    assert Delay().observe(seconds) == Delay()
    assert Delay().observe(1.0).observe(seconds) == Delay().observe(1.0)


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1e300])
def test_times_are_clipped(seconds):
    assert MIN_S * 0.999 <= Delay().observe(seconds).quantile(0.5) <= MAX_S * 1.001
