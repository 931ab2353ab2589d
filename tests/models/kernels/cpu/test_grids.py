"""A block that was quantised is recognised by its values."""

import numpy as np

from kvflow_jax.models.kernels.cpu.grids import find_scales

RNG = np.random.default_rng(0)


def scales_of(blocks, steps):
    peak = np.abs(blocks).max(axis=(1, 2))
    return peak / 15, [peak / num for num in steps]


def quantised(num_blocks, most):
    """Blocks of multiples of one step, of which the greatest is ``most`` times it."""
    blocks = RNG.integers(0, most, (num_blocks, 16, 2)).astype(np.float32)
    blocks[:, 3, 1] = most
    return blocks * RNG.random((num_blocks, 1, 1), np.float32)


def test_the_scale_is_that_of_the_steps_that_fit():
    blocks = np.concatenate([quantised(300, 15), quantised(300, 13), quantised(300, 11)])
    scales, others = scales_of(blocks, [13, 11])
    found = find_scales(blocks, scales, others)
    expected = np.concatenate([scales[:300], others[0][300:600], others[1][600:]])
    np.testing.assert_array_equal(found, expected)


def test_a_block_without_a_divisor_keeps_its_scale():
    blocks = np.concatenate([quantised(500, 13), RNG.random((100, 16, 2), np.float32)])
    scales, others = scales_of(blocks, [13])
    found = find_scales(blocks, scales, others)
    np.testing.assert_array_equal(found, np.concatenate([others[0][:500], scales[500:]]))


def test_of_floats_only_a_sample_is_looked_at():
    blocks = RNG.random((100_000, 16, 2), np.float32)
    scales, others = scales_of(blocks, [13])
    assert (find_scales(blocks, scales, others) == scales).all()
    blocks[1:2] = quantised(1, 13)  # between two of the sample
    scales, others = scales_of(blocks, [13])
    assert (find_scales(blocks, scales, others) == scales).all()


def test_blocks_of_zeros_and_no_blocks_are_accepted():
    for blocks in (np.zeros((4, 16, 2), np.float32), np.zeros((0, 16, 2), np.float32)):
        scales, others = scales_of(blocks, [13])
        np.testing.assert_array_equal(find_scales(blocks, scales, others), scales)
