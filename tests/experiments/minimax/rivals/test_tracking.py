"""GT-DA is its transcription, and its trackers follow the mean gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.rivals import GTDA, METHODS
from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax import directed_ring, over_axis
from tests.experiments.minimax.rivals import transcriptions


def test_it_is_its_transcription(agree):
    agree(METHODS["GT-DA"], GTDA(0.03, 0.2), transcriptions.gt)


def test_the_mean_of_the_trackers_is_the_mean_gradient():
    def gradients(shift, x, y, key):
        return 2 * y + x + shift, 2 * x - y - shift

    run = over_axis(GTDA(0.01, 0.05), directed_ring(5), gradients, steps=30)
    begin, shift = jnp.ones((5, 2)), jnp.arange(5.0)
    final, _ = run(shift, begin, begin, jax.random.split(jax.random.key(0), 5))
    for tracker, last in zip(final.trackers, final.last, strict=True):
        np.testing.assert_allclose(tracker.mean(0), last.mean(0), rtol=1e-4)


def test_stepsizes_are_checked():
    with pytest.raises(ConfigError, match="gamma_x must be positive and finite, not 0"):
        GTDA(0)
