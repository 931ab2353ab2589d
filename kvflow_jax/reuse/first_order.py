"""A first-order Markov model: the last agent alone decides."""

from __future__ import annotations

from kvflow_jax.reuse.context_tree import ContextTree


class FirstOrder(ContextTree):
    """The context tree cut to a depth of one, to compare it with."""

    def __init__(self) -> None:
        super().__init__(max_depth=1)
