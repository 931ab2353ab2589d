"""From a loaded model to a running engine."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import jax
from jax.sharding import PartitionSpec

from kvflow_jax.cache.transfer import DeviceTransfers, Direction, measure_bandwidth
from kvflow_jax.distributed.consistency import check_consistent
from kvflow_jax.distributed.follower import Replay
from kvflow_jax.distributed.leader import LeaderRunner, RemoteArrays
from kvflow_jax.distributed.process_group import Follower, Group, Leader
from kvflow_jax.distributed.transfers import LeaderTransfers
from kvflow_jax.engine.config import EngineConfig, EngineSizes
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.trace import ChromeTrace, NoTrace
from kvflow_jax.models.loading.load import LoadedModel
from kvflow_jax.models.memory import FreeMemory
from kvflow_jax.models.sharding import AXIS
from kvflow_jax.runtime.batch import BatchShape
from kvflow_jax.runtime.interfaces import NoTransfers, Runner, Transfers, WallClock
from kvflow_jax.runtime.runner import ModelRunner

log = logging.getLogger(__name__)

_DIGEST_CHARS = 16


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs under ``cache_dir``, so that later starts only load them.

    Call before the first compilation. A folder the user has set in JAX's own configuration stays.

    Of several processes JAX lets the first write only, and up to 0.12 no option changes that: the
    others compile anew at every start, unless the folder is one that all share. There they find its
    programs where the topology of their devices has the same fingerprint, which is part of the key;
    on CPU each process has another, so they never do.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def build_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    progress: bool = True,
    leader: Leader | None = None,
) -> Engine:
    """Allocate the pool, compile every batch shape, and give back an engine that is ready.

    Args:
        leader: of the processes that share the model; the others ``follow``.

    Raises:
        CapacityError: not even one request fits the memory there is.
        ConfigError: sizes that contradict the model, or processes that have loaded another one.
    """
    tracer = ChromeTrace(config.trace) if config.trace is not None else NoTrace()
    device = prepare(loaded, config, progress=progress, group=leader)
    sizes, bandwidth, pace = device.sizes, device.bandwidth, device.pace_s_per_byte
    tokenizer, clock = loaded.tokenizer, WallClock()
    runner: Runner = device.runner
    transfers: Transfers = NoTransfers()
    if leader is not None:
        remote_arrays = RemoteArrays(leader)
        runner = LeaderRunner(device.runner, leader, remote_arrays)
        rates = bandwidth or NoTransfers.bytes_per_s
        transfers = LeaderTransfers(leader, remote_arrays, rates, pace_s_per_byte=pace, now=clock.now)
    elif bandwidth is not None:
        transfers = DeviceTransfers(
            device.runner.block_sharding, bandwidth, pace_s_per_byte=pace, now=clock.now
        )
    return Engine(
        sizes,
        runner,
        clock,
        transfers,
        tokenizer=tokenizer,
        vocab_size=loaded.config.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids if tokenizer else loaded.config.eos_token_ids,
        model_name=loaded.name,
        seed=config.seed,
        tracer=tracer,
    )


def run_follower(loaded: LoadedModel, config: EngineConfig, follower: Follower) -> None:
    """Do what the leader does, until it closes.

    Raises:
        Exception: this process cannot; the group is broken then.
    """
    device = prepare(loaded, config, progress=False, group=follower)
    log.info("following process 0")
    Replay(device.runner, follower).run()


@dataclass(frozen=True)
class Prepared:
    """A runner that is warm, and what was found out on the way.

    Attributes:
        bandwidth: bytes per second each way, None where there is no host tier.
        pace_s_per_byte: of an emulated link; 0: the link there is.
    """

    sizes: EngineSizes
    runner: ModelRunner
    bandwidth: dict[Direction, float] | None
    pace_s_per_byte: float


def prepare(
    loaded: LoadedModel, config: EngineConfig, *, progress: bool, group: Group | None = None
) -> Prepared:
    """What every process of a group does alike: what they find out for themselves is gathered.

    Raises:
        CapacityError, ConfigError: see ``build_engine``.
    """
    if group is not None:
        check_consistent(group, _weights_of(loaded))
    shards = loaded.shards
    here = next(iter(loaded.params.values())).addressable_shards
    device: jax.Device = min((shard.device for shard in here), key=lambda d: d.id)
    num = 1 if shards is None else shards.num_shards
    free = FreeMemory.measure(device)
    if group is not None:
        free = FreeMemory.of_hosts([FreeMemory(*values) for values in group.gather([*astuple(free)])])
    sizes = EngineSizes.resolve(
        config, loaded.config, loaded.model.dtype, device, num_devices=num, free=free
    )
    flat: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(device)
    flat = flat if shards is None else shards.sharding(PartitionSpec(AXIS))
    bandwidth = _measured_link(flat, sizes)
    if group is not None:
        own = None if bandwidth is None else [bandwidth[way] for way in Direction]
        bandwidth = _slowest(group.gather(own))
    if bandwidth is None:
        sizes = replace(sizes, cache=replace(sizes.cache, num_host_blocks=0, prefetches=False))
    else:
        log.info(
            "host link: %.3g GB/s to the device, %.3g GB/s back",
            bandwidth[Direction.LOAD] / 1e9,
            bandwidth[Direction.OFFLOAD] / 1e9,
        )
    runner = ModelRunner(
        loaded.model,
        loaded.params,
        sizes.pool,
        sizes.shapes,
        extent_sizes=sizes.cache.extent_sizes if bandwidth is not None else (),
        shards=shards,
    )
    log.info("compiling %d batch shapes, or loading them compiled", len(sizes.shapes.shapes))
    start_s = time.monotonic()
    runner.warm_up(_progress_bar if progress else iter)
    log.info("%d programs ready in %.1f s", len(sizes.shapes.shapes), time.monotonic() - start_s)
    pace, ratio = 0.0, config.cache.link_ratio
    if ratio and bandwidth is not None:
        pace = ratio * runner.prefill_s_per_token() / token_bytes(sizes)
        log.info("the host link is emulated: %.3g GB/s", 1e-9 / pace)
    return Prepared(sizes, runner, bandwidth, pace)


def _weights_of(loaded: LoadedModel) -> dict[str, str]:
    """What of weights decides programs and tokens."""
    params = [(name, param.shape, str(param.dtype)) for name, param in loaded.params.items()]
    shapes = hashlib.sha256(repr(sorted(params)).encode()).hexdigest()
    return {"shapes": shapes[:_DIGEST_CHARS], "weights": loaded.version[:_DIGEST_CHARS]}


def token_bytes(sizes: EngineSizes) -> float:
    """KV bytes of a token."""
    return sizes.pool.page_bytes / sizes.pool.page_size


def _measured_link(
    here: jax.sharding.Sharding, sizes: EngineSizes
) -> dict[Direction, float] | None:
    """Bytes per second to and from the host; None where there is to be no host tier."""
    if not sizes.cache.num_host_blocks:
        return None
    try:
        rates = measure_bandwidth(here, sizes.cache.extent_sizes[-1] * sizes.pool.page_bytes)
    except NotImplementedError as error:
        log.warning("no host tier: %s", error)
        return None
    return rates


def _slowest(rates: list[list[float] | None]) -> dict[Direction, float] | None:
    """Of several processes, which copy their parts at once; None where one cannot."""
    able = [each for each in rates if each is not None]
    if len(able) < len(rates):
        return None
    return {way: min(each[i] for each in able) for i, way in enumerate(Direction)}


def _progress_bar(shapes: Iterable[BatchShape]) -> Iterator[BatchShape]:
    from tqdm.auto import tqdm

    yield from tqdm(shapes, desc="Compiling", unit="program")
