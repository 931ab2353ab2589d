"""Start-up: from a loaded model to an engine, or to a follower of another process's engine."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import jax
from jax.sharding import PartitionSpec

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.api.pool_sizes import PoolSizes
from kvflow_jax.cache.host_memory import pin_host_memory
from kvflow_jax.cache.transfer import DeviceTransfers, Direction, measure_bandwidth
from kvflow_jax.distributed.consistency import check_consistent
from kvflow_jax.distributed.follower import Replay
from kvflow_jax.distributed.leader import LeaderRunner, RemoteArrays
from kvflow_jax.distributed.process_group import Follower, Group, Leader
from kvflow_jax.distributed.transfers import LeaderTransfers
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import GIB, EngineSizes
from kvflow_jax.engine.trace import ChromeTrace, NoTrace
from kvflow_jax.errors import ConfigError
from kvflow_jax.models.chat_template_file import read_chat_template
from kvflow_jax.models.loading.cache_folder import CacheFolder, CacheInUseError, default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.models.memory import FreeMemory
from kvflow_jax.models.model import Model
from kvflow_jax.models.own_files import untrusted_file
from kvflow_jax.models.sharding import AXIS
from kvflow_jax.runtime.batch import BatchShape
from kvflow_jax.runtime.interfaces import NoTransfers, Runner, Transfers, WallClock
from kvflow_jax.runtime.runner import ModelRunner

log = logging.getLogger(__name__)

_DIGEST_CHARS = 16


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs under ``cache_dir``, so that later starts only load them.

    Call before the first compilation. A folder that the user has set in JAX's configuration stays.
    Programs are code: a folder that another user may have written to is not used.

    Of several processes JAX lets only the first write; up to 0.12 no option changes that. The
    others compile at every start, unless all share the folder. There they find the programs of the
    first if the topology of their devices has the same fingerprint, which is part of the key. On
    CPU each process has a different fingerprint, so they never do.
    """
    programs = cache_dir / "xla"
    if jax.config.values["jax_compilation_cache_dir"] is None and _prepare_programs(programs):
        jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _prepare_programs(folder: Path) -> bool:
    """Create the folder of compiled programs; return whether those in it may be run."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        untrusted = untrusted_file(folder)
    except OSError as error:
        log.warning("compiled programs are not kept: %s", error)
        return False
    if untrusted is not None:
        log.warning(
            "%s belongs to another user, is a link, or others can write to it, so programs are "
            "compiled at each start: remove %s, or choose another --cache-dir",
            *(untrusted, folder),
        )
    return untrusted is None


@contextmanager
def cache_of_start(config: LoadConfig) -> Iterator[None]:
    """Keep the entries of the cache folder within the context, a start; then trim the folder."""
    folder, started_s = CacheFolder(cache_dir_of(config)), time.time()
    with folder.in_use():
        yield
    try:
        removed = folder.trim(int(config.cache_dir_gib * GIB), keep_since_s=started_s)
    except CacheInUseError as error:
        log.debug("the cache folder is not trimmed: %s", error)
        return
    if removed:
        num_bytes = sum(entry.num_bytes for entry in removed)
        log.info(
            "removed %d entries (%.2f GiB) from %s, which is larger than %g GiB (--cache-dir-gib)",
            *(len(removed), num_bytes / GIB, folder.path, config.cache_dir_gib),
        )


def load(
    config: LoadConfig,
    engine: EngineConfig,
    *,
    check_model: Callable[[Model], None] = lambda model: None,
    progress: bool = True,
) -> LoadedModel:
    """Load a model and set up the compilation cache; see ``load_model``.

    Settings of the engine that do not fit the model or the memory are refused before weights are
    read.

    Args:
        engine: settings of the engine that the model is loaded for.

    Raises:
        ModelLoadError, CapacityError, ConfigError: see ``load_model``, ``EngineSizes.resolve`` and
            ``read_chat_template``.
    """

    def check(model: Model) -> None:
        check_model(model)
        _check_sizes(engine, model, config.tensor_parallel)

    _check_platform()
    template = None if config.chat_template is None else read_chat_template(config.chat_template)
    cache_dir = cache_dir_of(config)
    use_compilation_cache(cache_dir)
    loaded = load_model(
        config.model,
        dtype=config.dtype,
        cache_dir=cache_dir,
        random_weights=config.random_weights,
        seed=engine.seed or 0,
        attention=config.attention,
        quantize=config.quantize,
        tensor_parallel=config.tensor_parallel,
        check_model=check,
        page_size=engine.page_size,
        max_model_len=engine.max_model_len,
        progress=progress,
    )
    if template is not None:
        if loaded.tokenizer is None:
            raise ConfigError(
                f"a chat template needs a tokenizer, and {config.model} has none; leave the "
                "template out, or give a model with a tokenizer"
            )
        loaded.tokenizer.use_chat_template(template)
    return loaded


def cache_dir_of(config: LoadConfig) -> Path:
    """Return the cache folder of a start."""
    return config.cache_dir or default_cache_dir()


def _check_platform() -> None:
    """Raise ConfigError, with the remedy, if JAX has no device of the platform asked for."""
    try:
        jax.devices()
    # JAX 0.10 asserts that it has found one of the platforms.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.values["jax_platforms"]
        reason = f": {error}" if str(error) else ""
        raise ConfigError(
            f"JAX finds no device for JAX_PLATFORMS={platforms}{reason}; unset JAX_PLATFORMS, or "
            "install JAX for the device: pip install 'kvflow-jax[cuda13]' (cuda12, tpu)"
        ) from error


def _check_sizes(config: EngineConfig, model: Model, num_devices: int) -> None:
    """Raise the errors of ``EngineSizes.resolve`` from what is known before weights are read."""
    device = jax.local_devices()[0]
    free = FreeMemory.of_hosts([FreeMemory.measure(device)] * jax.process_count())
    if free.device_bytes is None:
        free = replace(free, host_bytes=free.host_bytes - model.weights_bytes)
    else:
        device_bytes = free.device_bytes - model.weights_bytes // num_devices
        free = replace(free, device_bytes=device_bytes)
    EngineSizes.resolve(
        config, model.config, model.dtype, device.platform, free, num_devices=num_devices
    )


def build_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    progress: bool = True,
    leader: Leader | None = None,
    cache_dir: Path | None = None,
    prepares_grammars: bool = False,
) -> Engine:
    """Allocate the pool, compile every batch shape and return an engine that is ready.

    Args:
        progress: show a progress bar while compiling.
        leader: this process's side of the group that shares the model, if there are several
            processes; the others call ``run_follower``.
        cache_dir: see ``prepare``.
        prepares_grammars: see ``Engine.prepare_grammars``.

    Raises:
        CapacityError: the free memory does not fit even one request.
        ConfigError: the sizes contradict the model, or a process has loaded another model.
    """
    tracer = ChromeTrace(config.trace) if config.trace is not None else NoTrace()
    device = prepare(loaded, config, progress=progress, group=leader, cache_dir=cache_dir)
    sizes, bandwidth, pace = device.sizes, device.bandwidth, device.pace_s_per_byte
    tokenizer, clock = loaded.tokenizer, WallClock()
    runner: Runner = device.runner
    transfers: Transfers = NoTransfers()
    if leader is not None:
        remote_arrays = RemoteArrays(leader)
        runner = LeaderRunner(device.runner, leader, remote_arrays)
        rates = bandwidth or NoTransfers.bytes_per_s
        transfers = LeaderTransfers(
            leader, remote_arrays, rates, pace_s_per_byte=pace, now=clock.now
        )
    elif bandwidth is not None:
        transfers = DeviceTransfers(
            device.runner.block_sharding, bandwidth, pace_s_per_byte=pace, now=clock.now
        )
    engine = Engine(
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
        longest_step_s=device.longest_step_s,
    )
    if prepares_grammars:
        engine.prepare_grammars()
    return engine


def run_follower(
    loaded: LoadedModel,
    config: EngineConfig,
    follower: Follower,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Replay the leader's steps on this process's devices until the leader closes the group.

    Args:
        on_ready: called once everything is compiled.

    Raises:
        Exception: a step failed here, so the group is broken.
    """
    device = prepare(loaded, config, progress=False, group=follower)
    on_ready()
    log.info("following process 0")
    Replay(device.runner, follower).run()


@dataclass(frozen=True)
class Prepared:
    """A warm runner and the sizes and rates that were measured for it.

    Attributes:
        longest_step_s: seconds of the longest step without context.
        bandwidth: bytes per second in each direction; None if there is no host tier.
        pace_s_per_byte: seconds per byte of the emulated link; 0: the link is not emulated.
    """

    sizes: EngineSizes
    runner: ModelRunner
    longest_step_s: float
    bandwidth: dict[Direction, float] | None
    pace_s_per_byte: float


def prepare(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    progress: bool,
    group: Group | None = None,
    cache_dir: Path | None = None,
) -> Prepared:
    """Build and warm up this process's runner.

    Every process of a group calls it. Free memory and bandwidth are gathered, so that all processes
    choose the same sizes.

    Args:
        cache_dir: where a process that shares its model with no other remembers the default size of
            the pool; None: nowhere.

    Raises:
        CapacityError, ConfigError: see ``build_engine``.
    """
    if group is not None:
        check_consistent(group, _weights_of(loaded))
    shards = loaded.shards
    weight_shards = jax.tree.leaves(loaded.params)[0].addressable_shards
    device = min((shard.device for shard in weight_shards), key=lambda d: d.id)
    num_devices = 1 if shards is None else shards.num_shards
    free = FreeMemory.measure(device)
    if group is not None:
        free = FreeMemory.of_hosts(
            [FreeMemory(*values) for values in group.gather([*astuple(free)])]
        )
    pool_sizes, last_num_pages = None, None
    key = (loaded.config, loaded.model.dtype, device.device_kind, num_devices, config.page_size)
    is_default = config.num_pages is None and config.pool_gib is None
    # Followers compile at every start, and each process has a cache folder of its own.
    if cache_dir is not None and group is None and is_default:
        pool_sizes = PoolSizes(cache_dir)
        last_num_pages = pool_sizes.last(*key)
    sizes = EngineSizes.resolve(
        config,
        loaded.config,
        loaded.model.dtype,
        device.platform,
        free,
        num_devices=num_devices,
        last_num_pages=last_num_pages,
    )
    if pool_sizes is not None:
        if sizes.pool.num_pages - 1 == last_num_pages:
            log.info("the pool has the size of the last start, whose programs are compiled")
        pool_sizes.remember(sizes.pool.num_pages - 1, *key)
    sizes.log(config, loaded.config)
    sharding: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(device)
    sharding = sharding if shards is None else shards.sharding(PartitionSpec(AXIS))
    bandwidth = _measure_link(sharding, sizes)
    if group is not None:
        own = None if bandwidth is None else [bandwidth[direction] for direction in Direction]
        bandwidth = _slowest(group.gather(own))
    if bandwidth is None:
        sizes = replace(sizes, cache=replace(sizes.cache, num_host_blocks=0, prefetches=False))
    else:
        log.info(
            "host link: load %.3g GB/s, offload %.3g GB/s",
            bandwidth[Direction.LOAD] / 1e9,
            bandwidth[Direction.OFFLOAD] / 1e9,
        )
        if device.platform == "gpu":
            pin_host_memory(sharding, sizes.cache.num_host_blocks * sizes.pool.page_bytes)
    runner = ModelRunner(
        loaded.model,
        loaded.params,
        sizes.pool,
        sizes.shapes,
        extent_sizes=sizes.cache.extent_sizes if bandwidth is not None else (),
        shards=shards,
    )
    log.info(
        "compiling %d batch shapes, or loading them from the compilation cache",
        len(sizes.shapes.shapes),
    )
    start_s = time.monotonic()
    runner.warm_up(_progress_bar if progress else iter)
    log.info("%d programs ready in %.1f s", len(sizes.shapes.shapes), time.monotonic() - start_s)
    pace, ratio = 0.0, config.cache.link_ratio
    if ratio and bandwidth is not None:
        pace = ratio * runner.prefill_s_per_token() / token_bytes(sizes)
        log.info("the host link is emulated: %.3g GB/s", 1e-9 / pace)
    return Prepared(sizes, runner, runner.longest_step_s(), bandwidth, pace)


def _weights_of(loaded: LoadedModel) -> dict[str, str]:
    """Return the properties of weights that decide programs and tokens, by name."""
    params = [
        (name, [(array.shape, str(array.dtype)) for array in jax.tree.leaves(weight)])
        for name, weight in loaded.params.items()
    ]
    shapes = hashlib.sha256(repr(sorted(params)).encode()).hexdigest()
    return {"shapes": shapes[:_DIGEST_CHARS], "weights": loaded.version[:_DIGEST_CHARS]}


def token_bytes(sizes: EngineSizes) -> float:
    """Return the bytes of a token's K and V in all layers."""
    return sizes.pool.page_bytes / sizes.pool.page_size


def _measure_link(
    sharding: jax.sharding.Sharding, sizes: EngineSizes
) -> dict[Direction, float] | None:
    """Measure bytes per second in each direction; None if there is to be no host tier."""
    if not sizes.cache.num_host_blocks:
        return None
    try:
        rates = measure_bandwidth(sharding, sizes.cache.extent_sizes[-1] * sizes.pool.page_bytes)
    except NotImplementedError as error:
        log.warning("no host tier: %s", error)
        return None
    return rates


def _slowest(rates: list[list[float] | None]) -> dict[Direction, float] | None:
    """Return the rates of the slowest process, for which all wait; None if one has no rates."""
    known = [process_rates for process_rates in rates if process_rates is not None]
    if len(known) < len(rates):
        return None
    return {
        direction: min(process_rates[i] for process_rates in known)
        for i, direction in enumerate(Direction)
    }


def _progress_bar(shapes: Iterable[BatchShape]) -> Iterator[BatchShape]:
    from tqdm.auto import tqdm

    yield from tqdm(shapes, desc="Compiling", unit="program")
