"""The digits are split and divided without overlap, always alike."""

import sys

import numpy as np
import pytest

from experiments.minimax.digits import data
from kvflow_jax.errors import ConfigError


def rows(images):
    """Return the images as a set; no two digits of the collection are alike."""
    return {pixels.tobytes() for pixels in np.asarray(images.pixels)}


def numbered(num_images):
    """Return images of which each shows its own index."""
    pixels = np.repeat(np.arange(num_images, dtype=np.float32)[:, None], data.NUM_PIXELS, axis=1)
    return data.Images(pixels, np.arange(num_images, dtype=np.int32) * 10 // num_images)


def test_no_image_is_both_trained_on_and_tested_on(digits):
    train, test = rows(digits.train), rows(digits.test)
    assert (len(train), len(test)) == (1440, 357)
    assert not train & test


def test_split_is_always_the_same(digits):
    again = data.load()
    np.testing.assert_array_equal(again.train.pixels, digits.train.pixels)
    np.testing.assert_array_equal(again.test.labels, digits.test.labels)


def test_pixels_and_labels_are_in_range(digits):
    assert digits.train.pixels.dtype == np.float32
    assert digits.train.labels.dtype == np.int32
    assert (digits.train.pixels.min(), digits.train.pixels.max()) == (0, 1)
    assert set(np.asarray(digits.test.labels)) == set(range(10))


@pytest.mark.parametrize("mixed_share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_nodes", [20, 7])
def test_every_image_goes_to_one_node(num_nodes, mixed_share):
    shards = data.divide(numbered(1440), num_nodes, 3, mixed_share)
    per_node = 1440 // num_nodes
    assert shards.labels.shape == (num_nodes, per_node)
    dealt = shards.pixels[..., 0].ravel().astype(int)
    assert len(set(dealt)) == num_nodes * per_node
    np.testing.assert_array_equal(shards.labels.ravel(), dealt * 10 // 1440)


def test_nodes_have_mostly_two_classes(digits):
    for labels in np.asarray(data.divide(digits.train, 20, 0).labels):
        most = np.sort(np.bincount(labels, minlength=10))[::-1]
        assert most[:2].sum() > len(labels) / 2
        assert np.count_nonzero(most) <= 4


def test_nodes_that_are_dealt_all_at_random_have_all_classes(digits):
    shards = data.divide(digits.train, 20, 0, mixed_share=1.0)
    assert all(len(set(labels)) == 10 for labels in np.asarray(shards.labels))


def test_division_depends_on_its_seed_only(digits):
    first, again, other = (data.divide(digits.train, 20, seed).pixels for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_many_nodes_are_refused():
    with pytest.raises(ConfigError, match="30 images are too few for 20 nodes"):
        data.divide(numbered(30), 20, 0)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"scikit-learn.*pip install -e '\.\[minimax\]'"):
        data.load()
