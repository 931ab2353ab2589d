"""Planned copies between the tiers: what the cache asks for, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.host_tier import Extent


@dataclass(slots=True, eq=False)
class Load:
    """A planned or running copy from the host to the device.

    Attributes:
        blocks: i32[n], of the extent; those still LOADING from it are wanted.
        is_prefetch: whether no request had asked for the blocks when it was planned.
        num_wanted: how many of ``blocks`` are still wanted.
    """

    extent: Extent
    blocks: np.ndarray
    is_prefetch: bool
    num_wanted: int


@dataclass(slots=True, eq=False)
class Offload:
    """A planned or running copy to the host. Its pages may be reused once they have been read."""

    extent: Extent
    pages: np.ndarray  # i32[n], of the blocks when the offload was planned


class TransferPlans(NamedTuple):
    """Transfers to carry out, in order of planning."""

    offloads: list[Offload]
    loads: list[Load]


class PageWrites(NamedTuple):
    """Loaded blocks of an extent that are still wanted, and where to write them.

    Attributes:
        indices: i32[m], indices within the extent.
        pages: i32[m], the page of each.
    """

    indices: np.ndarray
    pages: np.ndarray
