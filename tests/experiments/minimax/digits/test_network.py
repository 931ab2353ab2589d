"""The network's loss is what its formula says, and its gradients are the loss's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.digits import network
from experiments.minimax.digits.data import Images

# One program each: outside jit JAX compiles every small operation by itself.
start, logits, robust_loss, gradients = map(
    jax.jit, (network.start, network.logits, network.robust_loss, network.gradients)
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return Images(rng.random((5, 64), np.float32), rng.integers(0, 10, 5).astype(np.int32))


@pytest.fixture
def point():
    weights, perturbation = start(jax.random.key(0))
    return weights, perturbation + 0.1 * jax.random.normal(jax.random.key(1), (64,))


def literal_logits(weights, pixels):
    """Return the logits of one image: loops, and the mean after the convolution."""
    image = np.pad(pixels.reshape(8, 8), 1)
    conv = np.zeros((8, 8, 8))
    for row in range(8):
        for column in range(8):
            conv[:, row, column] = (
                weights.kernel @ image[row : row + 3, column : column + 3].ravel()
            )
    pooled = conv.reshape(8, 4, 2, 4, 2).mean((2, 4))
    features = np.logaddexp(pooled + weights.kernel_bias[:, None, None], 0).ravel()
    hidden = np.logaddexp(weights.hidden @ features + weights.hidden_bias, 0)
    return weights.output @ hidden + weights.output_bias


def test_network_has_the_size_that_is_named():
    weights, perturbation = start(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == 4538
    assert perturbation.shape == (64,)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((weights, perturbation))} == {"float32"}


def test_logits_are_those_of_a_literal_network(point, batch):
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 0.01, point[0])
    expected = np.stack([literal_logits(weights, pixels) for pixels in batch.pixels], axis=1)
    ours = logits(jax.tree.map(np.float32, weights), batch.pixels)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_robust_loss_is_the_cross_entropy_less_the_penalty(point, batch):
    weights, perturbation = point
    perturbed = Images(batch.pixels + perturbation, batch.labels)
    scores = np.asarray(logits(weights, perturbed.pixels))
    log_sums = np.logaddexp.reduce(scores, axis=0)
    nats = (log_sums - scores[batch.labels, np.arange(5)]).mean()
    expected = nats - network.ETA * np.sum(np.square(perturbation))
    np.testing.assert_allclose(robust_loss(*point, batch), expected, rtol=1e-5)


def test_gradients_of_a_node_are_finite_differences(point, batch):
    # All images alike: any batch that is drawn is the same.
    one = Images(np.repeat(batch.pixels[:1], 40, axis=0), np.repeat(batch.labels[:1], 40))
    grads = gradients(one, *point, jax.random.key(2))
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape), (point[0], point[1])
    )
    step = 1e-2

    def moved(factor):
        there = jax.tree.map(lambda leaf, way: leaf + factor * step * way, point, direction)
        return float(robust_loss(*there, one))

    slope = sum(
        float(jnp.vdot(grad, way))
        for grad, way in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(slope, rel=1e-2)


def test_batches_differ_by_key(point, batch):
    one, same, other = (gradients(batch, *point, jax.random.key(seed))[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
