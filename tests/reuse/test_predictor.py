"""The parts of a forecast."""

import pytest

from kvflow_jax.reuse.predictor import HORIZON, Forecast


def test_the_mean_is_over_the_ways_on_which_the_agent_calls():
    steps = (0.5, 0.0, 0.25, *[0.0] * (HORIZON - 3))
    forecast = Forecast(steps, None)
    assert forecast.chance == pytest.approx(0.75)
    assert forecast.mean_steps == pytest.approx((0.5 * 1 + 0.25 * 3) / 0.75)
    assert Forecast((0.0,) * HORIZON, None).mean_steps == 0.0
