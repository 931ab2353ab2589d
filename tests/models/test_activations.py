"""Activations of gated MLPs."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.activations import ACTIVATIONS, gate

X = np.linspace(-6, 6, 10, dtype=np.float32).reshape(2, 5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_first_half_gates_the_second(name):
    up = np.full_like(X, 2)
    gated = gate(jnp.concatenate([X, up], axis=-1), name)
    np.testing.assert_allclose(gated, 2 * ACTIVATIONS[name](X), rtol=1e-6)


def test_activations_have_the_values_of_their_formulas():
    np.testing.assert_allclose(ACTIVATIONS["silu"](X), X / (1 + np.exp(-X)), rtol=1e-5)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](X), X * (1 + tanh) / 2, atol=1e-6)
