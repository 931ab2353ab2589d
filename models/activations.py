"""Activations of gated MLPs, by the names that ``ModelConfig.activation`` has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def gate(gate_up: jax.Array, activation: str) -> jax.Array:  # [..., 2F] -> [..., F]
    """Return the activation of the first half of the last axis times the second half."""
    gates, up = jnp.split(gate_up, 2, axis=-1)
    return ACTIVATIONS[activation](gates) * up
