"""Scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, divided unequally among nodes.

The paper trains on MNIST, which no package that we may rely on ships. These digits are the test set
of the UCI collection "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), which
scikit-learn carries in its own files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.errors import ConfigError

NUM_CLASSES = 10
NUM_PIXELS = 64
# 1,440 images are 72 for each of 20 nodes, so that the mean over the nodes is that over all images.
NUM_TRAIN = 1440


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
        pixels: f32[..., 64] in [0, 1], row by row.
        labels: i32[...], the digits.
    """

    pixels: jax.Array
    labels: jax.Array


@dataclass(frozen=True)
class Digits:
    """The images to train on and those to test on; no image is in both."""

    train: Images
    test: Images


def load() -> Digits:
    """Return all digits, split at random, always alike: 1,440 to train on and 357 to test on.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits need scikit-learn; install it with: pip install -e '.[minimax]'"
        ) from error
    values, labels = load_digits(return_X_y=True)
    pixels = np.asarray(values / 16, np.float32)  # of 0 to 16
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = (
        Images(jnp.asarray(pixels[part]), jnp.asarray(labels[part], jnp.int32))
        for part in (order[:NUM_TRAIN], order[NUM_TRAIN:])
    )
    return Digits(train, test)


def divide(images: Images, num_nodes: int, seed: int, mixed_share: float = 0.0) -> Images:
    """Divide images equally among nodes, so that each has mostly two classes.

    The images are sorted by label and cut into two runs a node, which are dealt at random: the
    pathological split of McMahan et al. 2017 (arXiv 1602.05629).

    Args:
        images: [m, ...].
        num_nodes: n. Fewer than n images are left out where n does not divide m.
        seed: of the order in which images are dealt.
        mixed_share: share of a node's images that is dealt at random instead, in [0, 1].

    Returns:
        Images of [n, m // n, ...].

    Raises:
        ConfigError: A node would have fewer than two images.
    """
    per_node = len(images.labels) // num_nodes
    if per_node < 2:
        raise ConfigError(
            f"{len(images.labels)} images are too few for {num_nodes} nodes: each needs two"
        )
    run = int((1 - mixed_share) * per_node / 2)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images.labels))[: per_node * num_nodes]
    by_label, mixed = np.split(order, [2 * run * num_nodes])
    by_label = by_label[np.argsort(np.asarray(images.labels)[by_label], kind="stable")]
    runs = rng.permutation(by_label.reshape(2 * num_nodes, run)).reshape(num_nodes, 2 * run)
    index = np.concatenate([runs, mixed.reshape(num_nodes, per_node - 2 * run)], axis=1)
    return Images(images.pixels[index], images.labels[index])
