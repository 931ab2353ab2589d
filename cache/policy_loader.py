"""Eviction policies from outside ``POLICIES``: find them, and check what they return."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from kvflow_jax.cache.blocks import SUFFIX, BlockTable
from kvflow_jax.cache.policy import POLICIES, EvictionOrder
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, UNKNOWN_STEPS
from kvflow_jax.errors import PolicyError


def is_policy_name(name: str) -> bool:
    """True if ``name`` is in ``POLICIES``, or has the form ``module:function``."""
    module, _, function = name.partition(":")
    return name in POLICIES or bool(module and function)


def find_policy(policy: str | EvictionOrder) -> EvictionOrder:
    """Return the eviction order of a name in ``POLICIES``, of ``module:function``, or a function.

    One that is not in ``POLICIES`` is returned as a ``CheckedOrder``.

    Raises:
        PolicyError: there is no such function.
    """
    if isinstance(policy, str):
        return POLICIES[policy] if policy in POLICIES else CheckedOrder(policy, _import(policy))
    if policy in POLICIES.values():
        return policy
    module = getattr(policy, "__module__", type(policy).__module__)
    return CheckedOrder(f"{module}:{getattr(policy, '__qualname__', policy)}", policy)


def check_policy(policy: str | EvictionOrder) -> None:
    """Find a policy and try it on a small table.

    Raises:
        PolicyError: there is no such policy, it fails, its keys are invalid, or the key of a block
            depends on the other blocks of the call.
    """
    order = find_policy(policy)
    if not isinstance(order, CheckedOrder):
        return
    table = _small_table()
    blocks = np.arange(len(table.page), dtype=np.int32)
    keys = order(table, blocks)
    few = np.array([3, 1], np.int32)
    if not np.array_equal(order(table, few), keys[few]):
        raise PolicyError(
            f"the eviction policy {order.name} gives a block another key beside other blocks: a "
            "key may depend only on the facts of its own block"
        )
    order(table, blocks[:0])


@dataclass(frozen=True)
class CheckedOrder:
    """An eviction order that raises PolicyError, which names it, if it fails.

    Attributes:
        name: of the policy, ``module:function``.
    """

    name: str
    order: EvictionOrder

    def __call__(self, table: BlockTable, blocks: np.ndarray) -> np.ndarray:
        """Return the keys of ``blocks`` (i32[n]), f64[n, any].

        Raises:
            PolicyError: the policy has raised, or its keys have another shape, are no numbers, or
                include NaN.
        """
        try:
            keys = np.asarray(self.order(table, blocks))
        except Exception as error:
            raise PolicyError(
                f"the eviction policy {self.name} failed: {type(error).__name__}: {error}"
            ) from error
        is_fine = keys.ndim == 2 and len(keys) == len(blocks) and keys.dtype.kind in "biuf"
        if not is_fine or not keys.shape[1] or np.isnan(keys).any():
            raise PolicyError(
                f"the eviction policy {self.name} must return numbers of shape [{len(blocks)}, "
                "any], a row of keys for each block and no NaN; it returned "
                f"{keys.dtype}{list(keys.shape)}"
            )
        return keys


def _import(name: str) -> EvictionOrder:
    """Return the function ``module:function``."""
    module, _, function = name.partition(":")
    try:
        order: EvictionOrder = getattr(import_module(module), function)
    # A module may raise anything while it is imported.
    except Exception as error:
        raise PolicyError(
            f"the eviction policy {name!r} cannot be imported as module:function: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(order):
        raise PolicyError(f"the eviction policy {name!r} is not a function")
    return order


def _small_table() -> BlockTable:
    """Return a table of five nodes of one block, of every kind of reuse."""
    steps = [0.0, 1.5, UNKNOWN_STEPS, NEVER_STEPS, SUFFIX]
    table = BlockTable(len(steps), len(steps))
    blocks = table.allocate(len(steps), now=0.0)
    table.head[blocks] = blocks
    table.steps[blocks] = steps
    table.last_use[blocks] = [5.0, 4.0, 3.0, 2.0, 1.0]
    table.depth[blocks] = [0, 7, 2, 9, 2]
    return table
