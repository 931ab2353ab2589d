"""What a run on the digits is judged by: the gradient at the mean of the nodes, and accuracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.minimax.digits.data import Images
from experiments.minimax.digits.network import Weights, cross_entropy, logits, robust_loss
from kvflow_jax.minimax.dadast import squared_norm

# Of each pixel, in [0, 1]: the radius of the attack that accuracy is measured under.
ATTACK_RADIUS = 0.1
ATTACK_STEPS = 20
# Steps that together are 2.5 radii can reach the border of the box from anywhere in it.
ATTACK_STEPSIZE = 2.5 * ATTACK_RADIUS / ATTACK_STEPS


@jax.jit
def squared_gradients(weights: Weights, perturbation: jax.Array, images: Images) -> jax.Array:
    """Return f32[t], ``|grad_x f|^2`` over all images at each of t points.

    Args:
        weights: x at each point, [t, ...].
        perturbation: f32[t, 64], y at each point.
        images: of all nodes.
    """

    def at(point: tuple[Weights, jax.Array]) -> jax.Array:
        return squared_norm(jax.grad(robust_loss)(*point, images), jnp.float32)

    squares: jax.Array = jax.lax.map(at, (weights, perturbation))
    return squares


@jax.jit
def accuracy(weights: Weights, images: Images) -> jax.Array:
    """Return f32[], the share of images that a network gives their label the highest logit."""
    return jnp.mean(jnp.argmax(logits(weights, images.pixels), axis=0) == images.labels)


@jax.jit
def attack(weights: Weights, images: Images) -> Images:
    """Return images that projected gradient ascent (PGD, Madry et al. 2018) has perturbed.

    Each image has a perturbation of its own, unlike the one y of training. It begins at 0 and
    climbs the cross-entropy along the sign of the gradient, within ``ATTACK_RADIUS`` of each pixel
    and within [0, 1].
    """
    low = jnp.maximum(images.pixels - ATTACK_RADIUS, 0)
    high = jnp.minimum(images.pixels + ATTACK_RADIUS, 1)

    def loss(pixels: jax.Array) -> jax.Array:
        return cross_entropy(weights, Images(pixels, images.labels))

    def climb(_: int, pixels: jax.Array) -> jax.Array:
        moved = pixels + ATTACK_STEPSIZE * jnp.sign(jax.grad(loss)(pixels))
        return jnp.clip(moved, low, high)

    pixels: jax.Array = jax.lax.fori_loop(0, ATTACK_STEPS, climb, images.pixels)
    return Images(pixels, images.labels)
