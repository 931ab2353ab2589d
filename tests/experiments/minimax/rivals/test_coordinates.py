"""The coordinate-wise variant is its transcription, and with one parameter a player D-AdaST."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.rivals import METHODS, DAdaSTCoordinates
from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax import DAdaST, over_axis, ring
from tests.experiments.minimax.rivals import transcriptions

NAME = "D-AdaST, coordinate-wise"


def test_it_is_its_transcription(agree):
    rule = DAdaSTCoordinates(0.5, 0.7, 0.7, 0.3, 0.1)
    agree(METHODS[NAME], rule, transcriptions.adast_coordinates, 0.1, 0.7, 0.3)


def test_with_one_parameter_a_player_it_is_d_adast():
    def gradients(shift, x, y, key):
        return 2 * y + x + shift, 2 * x - y

    finals = []
    for rule in (DAdaSTCoordinates(), DAdaST()):
        run = over_axis(rule, ring(4), gradients, steps=50)
        begin, shift = jnp.ones((4, 1)), jnp.arange(4.0)[:, None]
        final, _ = run(shift, begin, begin, jax.random.split(jax.random.key(0), 4))
        finals.append((final.x, final.y, final.accum_x))
    np.testing.assert_allclose(*(np.concatenate(one, axis=None) for one in finals), rtol=1e-4)


def test_a_zero_gradient_moves_nothing_even_from_zero():
    rule = DAdaSTCoordinates(start=0.0)
    state = rule.init(jnp.ones(2), jnp.ones(3))
    state = rule.step(state, jnp.zeros(2), jnp.zeros(3), lambda message: message)
    np.testing.assert_array_equal(state.x, np.ones(2))
    np.testing.assert_array_equal(state.y, np.ones(3))


def test_exponents_are_checked():
    with pytest.raises(ConfigError, match="0 < beta < alpha < 1"):
        DAdaSTCoordinates(beta=0.9)
