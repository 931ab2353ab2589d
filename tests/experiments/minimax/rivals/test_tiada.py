"""D-TiAda is its transcription, and on a complete graph with like nodes it is D-AdaST."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.rivals import METHODS, DTiAda
from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax import DAdaST, full, over_axis, replicate
from tests.experiments.minimax.rivals import transcriptions


def test_it_is_its_transcription(agree):
    rule = DTiAda(0.5, 0.7, 0.7, 0.3, 0.1)
    agree(METHODS["D-TiAda"], rule, transcriptions.tiada, 0.1, 0.7, 0.3)


def test_with_like_nodes_it_is_d_adast():
    def gradients(_, x, y, key):
        return 2 * y + x, 2 * x - y

    finals = []
    for rule in (DTiAda(), DAdaST()):
        run = over_axis(rule, full(3), gradients, steps=50)
        begin = replicate(jnp.array([0.5]), 3)
        final, _ = run(jnp.zeros(3), begin, begin, jax.random.split(jax.random.key(0), 3))
        finals.append((final.x, final.y, final.accum_x))
    np.testing.assert_allclose(*(np.concatenate(one, axis=None) for one in finals), rtol=1e-6)


def test_exponents_are_checked():
    with pytest.raises(ConfigError, match="0 < beta < alpha < 1"):
        DTiAda(alpha=0.3)
