"""How an engine caches: its policy, its host tier, what moves ahead of time."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.errors import ConfigError

log = logging.getLogger(__name__)

CacheMode = Literal["gpu-only", "hicache", "kvflow"]
BackupTime = Literal["early", "evict"]

# Extents: as many bytes as let a link run at its full rate, few enough that a copy is soon over.
MAX_EXTENT_BYTES = 32 << 20
_EXTENT_LENGTHS = (1, 4, 16, 64)


@dataclass(frozen=True)
class CacheConfig:
    """What a user says of the cache; None follows from the mode.

    Args:
        mode: ``gpu-only``: least recently used blocks go, and are computed again. ``hicache``:
            the same order over device and host; what is on the host is loaded when its request is
            scheduled, and only that request waits. ``kvflow``: workflows say what goes, what is
            kept on the host, and what is brought back before it is asked for.
        eviction: a name in ``POLICIES``, of both tiers.
        prefetch: bring back what agents read next.
        host_cache_gib: budget of the host tier, GiB; 0 for none; None: as large as the pool, if
            there is memory.
        backup: ``early``, while the link is idle, or when a block is evicted.
        link_ratio: emulate a link over which to load a block takes this many times as long as to
            compute it; for machines where host and device memory are the same.
        guard: compute again what would take longer to load, by what either has cost of late; and
            let recency decide for clients whose graphs mislead.
        admission: while much time goes into computing again what was evicted, let runs take
            turns; None: with the eviction ``kvflow-cost``.
    """

    mode: CacheMode = "kvflow"
    eviction: str | None = None
    prefetch: bool | None = None
    host_cache_gib: float | None = None
    backup: BackupTime = "early"
    link_ratio: float | None = None
    guard: bool | None = None
    admission: bool | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("cache", self.mode, get_args(CacheMode)),
            ("eviction", self.eviction, (None, *POLICIES)),
            ("backup", self.backup, get_args(BackupTime)),
        ):
            if value not in allowed:
                names = ", ".join(one for one in allowed if one)
                raise ConfigError(f"{name} must be one of {names}; got {value!r}")
        if self.host_cache_gib is not None and not 0 <= self.host_cache_gib < math.inf:
            raise ConfigError(f"host_cache_gib must be at least 0, got {self.host_cache_gib}")
        if self.link_ratio is not None and not 0 < self.link_ratio < math.inf:
            raise ConfigError(f"link_ratio must be above 0, got {self.link_ratio}")
        if self.mode == "gpu-only" and self.host_cache_gib:
            raise ConfigError("cache gpu-only has no host tier: leave host_cache_gib out")
        if self.prefetch and self.mode == "gpu-only":
            raise ConfigError(
                "cache gpu-only has no host tier to prefetch from: leave prefetch out"
            )
        if self.prefetch and self.host_cache_gib == 0:
            raise ConfigError("prefetch needs a host tier: give it memory with host_cache_gib")


@dataclass(frozen=True)
class CacheSettings:
    """Everything decided. See ``CacheConfig``.

    Attributes:
        keeps_everything: whether whatever was cached is worth a host copy, as hierarchical caches
            have it, or only what somebody is known to read again.
        holds_back: whether runs wait for their turn where not all fit.
        num_host_blocks: budget of the host tier; 0: there is none.
        extent_sizes: lengths of host extents, blocks.
    """

    eviction: str = "lru"
    prefetches: bool = False
    guards: bool = False
    backs_up_early: bool = True
    keeps_everything: bool = False
    holds_back: bool = False
    num_host_blocks: int = 0
    extent_sizes: tuple[int, ...] = (1,)

    @classmethod
    def resolve(
        cls, config: CacheConfig, *, block_bytes: int, num_slots: int, free_host_bytes: int
    ) -> CacheSettings:
        """Decide what was left open from the pool's size and the host's free memory, bytes."""
        is_kvflow = config.mode == "kvflow"
        if config.mode == "gpu-only":
            num_host_blocks = 0
        elif config.host_cache_gib is not None:
            num_host_blocks = int(config.host_cache_gib * 2**30) // block_bytes
        else:
            num_host_blocks = min(num_slots, free_host_bytes // block_bytes)
        eviction = config.eviction or ("kvflow" if is_kvflow else "lru")
        lengths = [n for n in _EXTENT_LENGTHS if n * block_bytes <= MAX_EXTENT_BYTES]
        return cls(
            eviction=eviction,
            prefetches=is_kvflow if config.prefetch is None else config.prefetch,
            guards=is_kvflow if config.guard is None else config.guard,
            backs_up_early=config.backup == "early",
            keeps_everything=config.mode == "hicache",
            holds_back=eviction == "kvflow-cost" if config.admission is None else config.admission,
            num_host_blocks=num_host_blocks,
            extent_sizes=tuple(n for n in lengths if n <= num_slots) or (1,),
        )
