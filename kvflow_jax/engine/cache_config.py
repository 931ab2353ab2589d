"""Cache configuration: eviction policy, host tier, prefetching, safeguards, admission control."""

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

# Largest host extent: long enough for a link to reach its full rate, short enough for a copy to end
# soon.
MAX_EXTENT_BYTES = 32 << 20
_EXTENT_LENGTHS = (1, 4, 16, 64)


@dataclass(frozen=True)
class CacheConfig:
    """The user's cache settings; a setting of None takes the default of the mode.

    Args:
        mode: ``gpu-only``: evict blocks in LRU order and compute them again when needed.
            ``hicache``: LRU over device and host memory; blocks on the host are loaded when their
            request is scheduled, and only that request waits. ``kvflow``: workflows decide which
            blocks are evicted, which are kept on the host, and which are prefetched.
        eviction: eviction policy of both tiers, a name in ``POLICIES``; None: ``kvflow`` in that
            mode, else ``lru``.
        prefetch: load blocks that agents will read before their requests arrive; None: in mode
            ``kvflow``.
        host_cache_gib: size of the host tier, GiB; 0: no host tier; None: as large as the pool, if
            a quarter of the free host memory allows it.
        backup: when to offload blocks to the host: ``early``, while the link is idle, or
            ``evict``, when they are evicted.
        link_ratio: emulate a link over which loading a block takes this many times as long as
            computing it; for machines where host and device memory are the same.
        guard: switch three safeguards on: the cost model (compute blocks whose load would take
            longer, by recent measurements), the LRU fallback (ignore the step graphs of a tenant
            while they lower the hit rate below that of a shadow LRU cache), and the demotion of
            quiet runs (a run that stays idle for unusually long counts as far from its next step);
            None: in mode ``kvflow``.
        admission: admission control: time-slice runs while more than 20 % of the time is spent
            computing evicted blocks again (thrashing), if the smaller batches cost less; None: with
            the policy ``kvflow-cost``.

    Raises:
        ConfigError: a value is out of range, or two settings contradict each other.
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
                names = ", ".join(choice for choice in allowed if choice)
                raise ConfigError(f"{name} must be one of {names}; got {value!r}")
        if self.host_cache_gib is not None and not 0 <= self.host_cache_gib < math.inf:
            raise ConfigError(f"host_cache_gib must be at least 0, got {self.host_cache_gib}")
        if self.link_ratio is not None and not 0 < self.link_ratio < math.inf:
            raise ConfigError(f"link_ratio must be above 0, got {self.link_ratio}")
        if self.mode == "gpu-only" and self.host_cache_gib:
            raise ConfigError("cache gpu-only has no host tier: remove host_cache_gib")
        if self.prefetch and self.mode == "gpu-only":
            raise ConfigError("cache gpu-only has no host tier to prefetch from: remove prefetch")
        if self.prefetch and self.host_cache_gib == 0:
            raise ConfigError("prefetch needs a host tier: set host_cache_gib above 0")


@dataclass(frozen=True)
class CacheSettings:
    """A ``CacheConfig`` without open settings.

    Attributes:
        safeguards: the cost model, the LRU fallback and the demotion of quiet runs are on.
        offloads_early: offload while the link is idle, not only on eviction.
        offloads_everything: every cached block is worth a host copy, as in hierarchical caches;
            else only blocks that have a reader.
        admission_control: runs are throttled while their working sets do not fit.
        num_host_blocks: size of the host tier, blocks; 0: no host tier.
        extent_sizes: lengths of host extents, blocks, ascending.
    """

    eviction: str = "lru"
    prefetches: bool = False
    safeguards: bool = False
    offloads_early: bool = True
    offloads_everything: bool = False
    admission_control: bool = False
    num_host_blocks: int = 0
    extent_sizes: tuple[int, ...] = (1,)

    @classmethod
    def resolve(
        cls, config: CacheConfig, *, block_bytes: int, num_pages: int, free_host_bytes: int
    ) -> CacheSettings:
        """Resolve settings of None from the mode, the pool and the host's free memory.

        Args:
            block_bytes: size of a KV block.
            num_pages: pages of the device pool.
            free_host_bytes: largest host tier that may be chosen by default.
        """
        is_kvflow = config.mode == "kvflow"
        if config.mode == "gpu-only":
            num_host_blocks = 0
        elif config.host_cache_gib is not None:
            num_host_blocks = int(config.host_cache_gib * 2**30) // block_bytes
        else:
            num_host_blocks = min(num_pages, free_host_bytes // block_bytes)
        eviction = config.eviction or ("kvflow" if is_kvflow else "lru")
        lengths = [n for n in _EXTENT_LENGTHS if n * block_bytes <= MAX_EXTENT_BYTES]
        return cls(
            eviction=eviction,
            prefetches=is_kvflow if config.prefetch is None else config.prefetch,
            safeguards=is_kvflow if config.guard is None else config.guard,
            offloads_early=config.backup == "early",
            offloads_everything=config.mode == "hicache",
            admission_control=(
                eviction == "kvflow-cost" if config.admission is None else config.admission
            ),
            num_host_blocks=num_host_blocks,
            extent_sizes=tuple(n for n in lengths if n <= num_pages) or (1,),
        )
