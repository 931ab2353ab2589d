"""Runs are judged over all images, and the attack stays in its box."""

import jax
import numpy as np
import pytest

from experiments.minimax.digits import evaluation, network
from experiments.minimax.digits.data import Images


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return Images(rng.random((12, 64), np.float32), rng.integers(0, 10, 12).astype(np.int32))


@pytest.fixture(scope="module")
def weights():
    # In numpy from here on: JAX compiles every small operation outside jit by itself.
    return jax.device_get(jax.jit(network.start)(jax.random.key(0))[0])


def test_squared_gradients_are_over_all_images_at_each_point(images, weights):
    points = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), weights)
    perturbations = np.zeros((2, 64), np.float32)
    ours = evaluation.squared_gradients(points, perturbations, images)
    gradient = jax.jit(jax.grad(network.robust_loss))
    for factor, square in zip((1, 2), ours, strict=True):
        at = jax.tree.map(lambda leaf, factor=factor: factor * leaf, weights)
        grads = [
            jax.device_get(gradient(at, perturbations[0], Images(*one)))
            for one in zip(images.pixels[:, None], images.labels[:, None], strict=True)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *grads)
        expected = sum(float(np.sum(leaf**2)) for leaf in mean)
        assert float(square) == pytest.approx(expected, rel=1e-4)


def test_accuracy_counts_the_highest_logit(images, weights):
    guesses = np.argmax(jax.jit(network.logits)(weights, images.pixels), axis=0)
    labels = guesses.astype(np.int32)
    assert float(evaluation.accuracy(weights, Images(images.pixels, labels))) == 1
    labels = np.where(np.arange(12) < 3, (labels + 1) % 10, labels).astype(np.int32)
    assert float(evaluation.accuracy(weights, Images(images.pixels, labels))) == 0.75


def test_attack_stays_in_its_box_and_raises_the_loss(images, weights):
    attacked = evaluation.attack(weights, images)
    moved = np.asarray(attacked.pixels) - images.pixels
    assert np.abs(moved).max() <= evaluation.ATTACK_RADIUS + 1e-6
    assert np.asarray(attacked.pixels).min() >= 0
    assert np.asarray(attacked.pixels).max() <= 1
    np.testing.assert_array_equal(attacked.labels, images.labels)
    loss = jax.jit(network.cross_entropy)
    before, after = (loss(weights, one) for one in (images, attacked))
    assert float(after) > float(before)
