"""The two players on the digits: a small convolutional network, and one perturbation of all images.

    min_x max_y  1/n sum_i E cross-entropy(network_x(image + y), label) - eta |y|^2

The expectation is over node i's images; x are the weights, and y in R^64 is one perturbation, on
which all nodes agree by consensus. The objective is the paper's robust training (arXiv 2406.02939);
its eta, network and batch are not known, and these are ours. Cross-entropy is not concave in y, so
strong concavity holds where ``-eta |y|^2`` outweighs it. That is not proven.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.minimax.digits.data import NUM_CLASSES, NUM_PIXELS, Images

ETA = 0.05
BATCH_SIZE = 32
SIDE = 8  # pixels
KERNEL = 3  # pixels
POOL = 2  # pixels
NUM_POSITIONS = (SIDE // POOL) ** 2
NUM_CHANNELS = 8
NUM_HIDDEN = 32


class Weights(NamedTuple):
    """The network: a convolution, a hidden layer and an output layer; 4,538 numbers."""

    kernel: jax.Array  # f32[8, 9]
    kernel_bias: jax.Array  # f32[8]
    hidden: jax.Array  # f32[32, 128]
    hidden_bias: jax.Array  # f32[32]
    output: jax.Array  # f32[10, 32]
    output_bias: jax.Array  # f32[10]


def start(key: jax.Array) -> tuple[Weights, jax.Array]:
    """Return x and y before the first step: random weights, and no perturbation.

    Weights have variance 2 / fan-in (He et al. 2015), biases are 0.
    """

    def normal(key: jax.Array, num_out: int, num_in: int) -> jax.Array:
        deviation: float = (2 / num_in) ** 0.5
        return deviation * jax.random.normal(key, (num_out, num_in), jnp.float32)

    kernel_key, hidden_key, output_key = jax.random.split(key, 3)
    weights = Weights(
        kernel=normal(kernel_key, NUM_CHANNELS, KERNEL**2),
        kernel_bias=jnp.zeros(NUM_CHANNELS, jnp.float32),
        hidden=normal(hidden_key, NUM_HIDDEN, NUM_CHANNELS * NUM_POSITIONS),
        hidden_bias=jnp.zeros(NUM_HIDDEN, jnp.float32),
        output=normal(output_key, NUM_CLASSES, NUM_HIDDEN),
        output_bias=jnp.zeros(NUM_CLASSES, jnp.float32),
    )
    return weights, jnp.zeros(NUM_PIXELS, jnp.float32)


def logits(weights: Weights, pixels: jax.Array) -> jax.Array:
    """Return f32[10, b], the logits of each image.

    As in LeNet (LeCun et al. 1998) the mean over 2 x 2 positions precedes the activation, which is
    softplus: the loss must be smooth.

    Args:
        weights: of one node.
        pixels: f32[b, 64].
    """
    # The images are the last axis throughout, so that a CPU is busy with products of matrices and
    # long loops also where the nodes are a leading axis.
    patches = _pooled_patches(pixels.T.reshape(SIDE, SIDE, -1))  # [9, 16 * b]
    channels = _softplus(weights.kernel @ patches + weights.kernel_bias[:, None])  # [8, 16 * b]
    features = channels.reshape(NUM_CHANNELS * NUM_POSITIONS, -1)  # [128, b]
    hidden = _softplus(weights.hidden @ features + weights.hidden_bias[:, None])  # [32, b]
    return weights.output @ hidden + weights.output_bias[:, None]


def cross_entropy(weights: Weights, images: Images) -> jax.Array:
    """Return f32[], the mean cross-entropy of b images, in nats."""
    scores = logits(weights, images.pixels)
    is_label = jnp.arange(NUM_CLASSES)[:, None] == images.labels
    of_label = jnp.sum(jnp.where(is_label, scores, 0), axis=0)
    return jnp.mean(jax.nn.logsumexp(scores, axis=0) - of_label)


def robust_loss(weights: Weights, perturbation: jax.Array, images: Images) -> jax.Array:
    """Return f32[], the mean cross-entropy of perturbed images, less ``eta |y|^2``.

    Args:
        weights: x.
        perturbation: f32[64], y, added to each image.
        images: b of them.
    """
    perturbed = Images(images.pixels + perturbation, images.labels)
    return cross_entropy(weights, perturbed) - ETA * jnp.sum(perturbation**2)


def gradients(
    images: Images, weights: Weights, perturbation: jax.Array, key: jax.Array
) -> tuple[Weights, jax.Array]:
    """Return the gradients of one node's loss in x and y over a random batch of its images.

    Args:
        images: all of the node.
        weights: x.
        perturbation: f32[64], y.
        key: of the batch, which is drawn with replacement.
    """
    chosen = jax.random.randint(key, (BATCH_SIZE,), 0, len(images.labels), jnp.int32)
    batch = Images(images.pixels[chosen], images.labels[chosen])
    grads: tuple[Weights, jax.Array] = jax.grad(robust_loss, argnums=(0, 1))(
        weights, perturbation, batch
    )
    return grads


def _pooled_patches(pixels: jax.Array) -> jax.Array:
    """Return f32[9, 16 * b]: the 3 x 3 pixels around each one, averaged over 2 x 2 of them.

    Pooling commutes with the convolution, and here the products have a quarter of the columns.
    Beyond the border pixels are 0.
    """
    padded = jnp.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    rows = (padded[:-1] + padded[1:]) / 2
    means = (rows[:, :-1] + rows[:, 1:]) / 2
    shifted = [
        means[row : row + SIDE : POOL, column : column + SIDE : POOL]
        for row in range(KERNEL)
        for column in range(KERNEL)
    ]
    return jnp.stack(shifted).reshape(KERNEL**2, -1)


def _softplus(value: jax.Array) -> jax.Array:
    """Return ``log(1 + e^value)``; on a CPU in half the time of ``jax.nn.softplus``."""
    return jnp.maximum(value, 0) + jnp.log1p(jnp.exp(-jnp.abs(value)))
