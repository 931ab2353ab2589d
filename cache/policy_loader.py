"""Eviction policies from outside ``POLICIES``: find them, and check what they return."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from kvflow_jax.cache.blocks import BlockTable
from kvflow_jax.cache.next_read import NEVER, RUNNING, SUFFIX, UNKNOWN, scheduled
from kvflow_jax.cache.policy import POLICIES, BlockFacts, EvictionOrder
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
    keys = order(BlockFacts(table, blocks))
    few = np.array([3, 1], np.int32)
    if not np.array_equal(order(BlockFacts(table, few)), keys[few]):
        raise PolicyError(
            f"the eviction policy {order.name} gives a block another key beside other blocks: a "
            "key may depend only on the facts of its own block"
        )


@dataclass(frozen=True)
class CheckedOrder:
    """An eviction order that raises PolicyError, which names it, if it fails.

    Attributes:
        name: of the policy, ``module:function``.
    """

    name: str
    order: EvictionOrder

    def __call__(self, facts: BlockFacts) -> np.ndarray:
        """Return the keys of n blocks, f64[n, any].

        Raises:
            PolicyError: the policy has raised, or its keys have another shape, are no numbers, or
                include NaN.
        """
        try:
            keys = np.asarray(self.order(facts))
        except Exception as error:
            raise PolicyError(
                f"the eviction policy {self.name} failed: {type(error).__name__}: {error}"
            ) from error
        is_fine = keys.ndim == 2 and len(keys) == len(facts) and keys.dtype.kind in "biuf"
        if not is_fine or not keys.shape[1] or np.isnan(keys).any():
            raise PolicyError(
                f"the eviction policy {self.name} must return numbers of shape [{len(facts)}, "
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
    except (Exception, SystemExit) as error:
        raise PolicyError(
            f"the eviction policy {name!r} cannot be imported as module:function: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(order):
        raise PolicyError(f"the eviction policy {name!r} is not a function")
    return order


def _small_table() -> BlockTable:
    """Return a table of six nodes of one block, with every kind of next read."""
    throttled = scheduled(2.0).throttled()
    reads = [RUNNING, scheduled(1.0, chance=0.5), UNKNOWN, throttled, NEVER, SUFFIX]
    table = BlockTable(len(reads), len(reads))
    blocks = table.allocate(len(reads), now=0.0)
    table.head[blocks] = blocks
    table.next_read[blocks] = np.array(reads)
    table.last_use[blocks] = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    table.depth[blocks] = [0, 7, 2, 5, 9, 2]
    return table
