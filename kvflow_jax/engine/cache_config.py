"""Cache configuration: eviction policy, host tier, prefetching, safeguards, admission control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from kvflow_jax.cache.policy import POLICIES, EvictionOrder, lru
from kvflow_jax.cache.policy_loader import check_policy, is_policy_name
from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import NEW_FILE, NON_NEGATIVE, POSITIVE, TOGGLE, Values, one_of
from kvflow_jax.errors import ConfigError
from kvflow_jax.reuse.predictors import CONTEXT_TREE, NONE, PREDICTORS

CacheMode = Literal["gpu-only", "hicache", "kvflow"]
BackupTime = Literal["early", "evict"]
EVICTIONS = Values[str | EvictionOrder](
    f"one of {', '.join(POLICIES)}, or module:function",
    str,
    lambda value: callable(value) or (isinstance(value, str) and is_policy_name(value)),
    metavar="|".join([*POLICIES, "module:function"]),
)

# Largest host extent: long enough for a link to reach its full rate, short enough for a copy to end
# soon.
MAX_EXTENT_BYTES = 32 << 20
_EXTENT_LENGTHS = (1, 4, 16, 64)


@dataclass(frozen=True)
class CacheConfig(Config):
    """The user's cache settings; a setting of None takes the default of the mode.

    Raises:
        ConfigError: a value is out of range, or two settings contradict each other.
        PolicyError: the eviction policy cannot be found, or returns invalid keys.
    """

    title: ClassVar[str] = "cache"
    about: ClassVar[str] = (
        "policy of the KV cache; --cache selects it, the other flags change one part of it, for "
        "experiments"
    )

    mode: CacheMode = flag(
        "kvflow",
        "gpu-only: evict the least recently used (LRU) blocks and recompute them. hicache: LRU on "
        "device and host; evicted blocks stay in host memory and are loaded when a request needs "
        "them, and only that request waits. kvflow: workflows decide the order of eviction, and "
        "blocks are loaded before a request needs them",
        one_of(*get_args(CacheMode)),
        name="cache",
    )
    eviction: str | EvictionOrder | None = flag(
        None,
        "eviction policy of device and host: a name, or a function of your own",
        EVICTIONS,
        if_unset="kvflow with --cache kvflow, else lru",
    )
    prefetch: bool | None = flag(
        None,
        "load the blocks of the agents that run next before a request needs them",
        TOGGLE,
        if_unset="on with --cache kvflow",
    )
    host_cache_gib: float | None = flag(
        None,
        "host memory for offloaded KV blocks, GiB, 0 for none",
        NON_NEGATIVE,
        unit="GIB",
        if_unset="the size of the pool, or a quarter of the free host memory if that is less",
    )
    backup: BackupTime = flag(
        "early",
        "when to offload blocks to the host: early, while the link is idle, or on evict",
        one_of(*get_args(BackupTime)),
    )
    link_ratio: float | None = flag(
        None,
        "emulate a host link over which loading a block takes this many times as long as computing "
        "it, for machines where host and device memory are the same",
        POSITIVE,
        unit="RATIO",
        if_unset="the real link",
    )
    guard: bool | None = flag(
        None,
        "three safeguards: recompute blocks that take longer to load (cost model), fall back to "
        "LRU where step graphs lower the hit rate below that of a shadow LRU cache, and treat runs "
        "that are idle for unusually long as distant",
        TOGGLE,
        if_unset="on with --cache kvflow",
    )
    admission: bool | None = flag(
        None,
        "admission control: time-slice workflow runs while the cache thrashes, if the smaller "
        "batches cost less",
        TOGGLE,
        if_unset="on with --eviction kvflow-cost",
    )
    predictor: str = flag(
        CONTEXT_TREE,
        "how the order in which agents call is learned: context-tree by the last calls of a run, "
        "as many as pay; first-order by the last one; none: not at all, and agents and runs that "
        "requests do not name are not recognised",
        one_of(*PREDICTORS),
    )
    learned_order: Path | str | None = flag(
        None,
        "file that keeps the learned order over restarts",
        NEW_FILE,
        if_unset="it is learned anew after each start",
        is_per_process=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "gpu-only" and self.host_cache_gib:
            raise ConfigError("cache gpu-only has no host tier: remove host_cache_gib")
        if self.prefetch and self.mode == "gpu-only":
            raise ConfigError("cache gpu-only has no host tier to prefetch from: remove prefetch")
        if self.prefetch and self.host_cache_gib == 0:
            raise ConfigError("prefetch needs a host tier: set host_cache_gib above 0")
        if self.eviction is not None:
            check_policy(self.eviction)

    @property
    def recognises_callers(self) -> bool:
        """Whether agents, runs and conversations are recognised where requests do not name them."""
        evicts_by_hints = self.eviction not in (None, "lru", lru)
        uses_hints = self.mode == "kvflow" or evicts_by_hints or self.prefetch or self.admission
        return bool(uses_hints) and self.predictor != NONE


@dataclass(frozen=True)
class CacheSettings:
    """A ``CacheConfig`` without open settings.

    Attributes:
        eviction: a name in ``POLICIES``, ``module:function``, or a function.
        safeguards: the cost model, the LRU fallback and the demotion of quiet runs are on.
        offloads_early: offload while the link is idle, not only on eviction.
        offloads_everything: every cached block is worth a host copy, as in hierarchical caches;
            else only blocks that have a reader.
        admission_control: runs are throttled while their working sets do not fit.
        predictor: a name in ``PREDICTORS``; "none" where nothing is decided by hints: callers are
            not recognised then, either.
        learned_order: file of what the predictor has learned; None: no file.
        num_host_blocks: size of the host tier, blocks; 0: no host tier.
        extent_sizes: lengths of host extents, blocks, ascending.
    """

    eviction: str | EvictionOrder = "lru"
    prefetches: bool = False
    safeguards: bool = False
    offloads_early: bool = True
    offloads_everything: bool = False
    admission_control: bool = False
    predictor: str = NONE
    learned_order: Path | None = None
    num_host_blocks: int = 0
    extent_sizes: tuple[int, ...] = (1,)

    @property
    def uses_hints(self) -> bool:
        """Whether hints of workflows decide anything: LRU on both tiers alone reads none."""
        offloads_by_reader = self.num_host_blocks > 0 and not self.offloads_everything
        evicts_by_hints = self.eviction not in ("lru", lru)
        return evicts_by_hints or self.prefetches or self.admission_control or offloads_by_reader

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
        settings = cls(
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
        if not settings.uses_hints:
            return settings
        path = None if config.learned_order is None else Path(config.learned_order)
        return replace(settings, predictor=config.predictor, learned_order=path)
