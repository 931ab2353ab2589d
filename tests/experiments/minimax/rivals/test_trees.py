"""What the rivals share keeps zeros, widths and structures."""

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.trees import choose, wide_zeros, widen


def test_narrow_trees_are_widened_and_wide_ones_kept():
    tree = {"narrow": jnp.ones(2, jnp.bfloat16), "plain": jnp.ones(3)}
    for wide in (widen(tree), wide_zeros(tree)):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(wide)} == {"float32"}
    assert not wide_zeros(tree)["plain"].any()


def test_a_condition_chooses_a_whole_tree():
    ones, zeros = (jnp.ones(2), jnp.ones(1)), (jnp.zeros(2), jnp.zeros(1))
    assert all(leaf.all() for leaf in choose(jnp.array(True), ones, zeros))
    assert not any(leaf.any() for leaf in choose(jnp.array(False), ones, zeros))
