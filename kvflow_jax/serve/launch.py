"""Construction of a running engine from a ServerConfig; no other module builds the engine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from kvflow_jax import __version__
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.protocols import Engine, Tokenizer

if TYPE_CHECKING:
    from kvflow_jax.distributed.process_group import Group, Leader
    from kvflow_jax.engine.config import EngineConfig
    from kvflow_jax.models.loading.load import LoadedModel
    from kvflow_jax.models.model import Model

# Random weights and compiled programs depend on the releases of these packages.
_VERSIONED_PACKAGES = ("jax", "jaxlib", "flax")
_SHARED_SETTINGS = (
    "model",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "page_size",
    "pool_gib",
    "num_pages",
    "dtype",
    "attention",
    "tensor_parallel",
    "random_weights",
    "seed",
    "deterministic",
)


def build_engine(
    config: ServerConfig, process_info: ProcessInfo | None = None
) -> tuple[Engine, Tokenizer | None, str]:
    """Load the model, allocate the pool, warm up, start the engine thread; takes up to minutes.

    Runs on its own thread while the server already answers ``/health``. Imports are lazy, so that
    ``--help`` and a port in use do not wait for the import of JAX.

    Args:
        process_info: identity of process 0 if several processes share the model; it then waits
            for the others.

    Returns:
        the engine, its tokenizer (None if the model has none), and the model's own name.

    Raises:
        ModelLoadError, CapacityError, ConfigError: the message names the remedy.
    """
    if process_info is None:
        return _build(config, None)

    from kvflow_jax.distributed.rendezvous import start_leader

    leader = start_leader(process_info, shared_settings(config), config.join_timeout_s)
    try:
        return _build(config, leader)
    except Exception as error:
        leader.fail(str(error))
        raise


def _build(config: ServerConfig, leader: Leader | None) -> tuple[Engine, Tokenizer | None, str]:
    from kvflow_jax.api.launch import build_engine as build
    from kvflow_jax.engine.engine_thread import EngineThread

    # A progress bar in a log file is noise.
    progress = sys.stderr.isatty()
    loaded = load(config, group=leader, progress=progress)
    if loaded.tokenizer is not None:
        # Computed here once, over the whole vocabulary, to keep it off the event loop.
        _ = loaded.tokenizer.max_token_bytes
    engine = build(loaded, engine_config(config), progress=progress, leader=leader)
    thread = EngineThread(engine) if leader is None else EngineThread(engine, leader.stalled_by)
    return thread, loaded.tokenizer, loaded.name


def load(config: ServerConfig, *, group: Group | None = None, progress: bool) -> LoadedModel:
    """Load the model onto the devices of this process or of a group; see ``load_model``."""
    from kvflow_jax.api.launch import use_compilation_cache
    from kvflow_jax.distributed.consistency import check_consistent, model_properties
    from kvflow_jax.models.loading.load import load_model

    def check_model(model: Model) -> None:
        if group is not None:
            check_consistent(group, model_properties(model))

    use_compilation_cache(config.cache_dir)
    return load_model(
        config.model,
        dtype=config.dtype,
        cache_dir=config.cache_dir,
        random_weights=config.random_weights,
        seed=config.seed or 0,
        attention=config.attention,
        tensor_parallel=config.tensor_parallel,
        check_model=check_model,
        page_size=config.page_size,
        max_model_len=config.max_model_len,
        progress=progress,
    )


def engine_config(config: ServerConfig) -> EngineConfig:
    """Return the settings of the engine."""
    from kvflow_jax.engine.config import EngineConfig

    return EngineConfig(
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        page_size=config.page_size,
        num_pages=config.num_pages,
        pool_gib=config.pool_gib,
        max_waiting=config.max_waiting,
        seed=config.seed,
        deterministic=config.deterministic,
        cache=config.cache,
        trace=config.trace,
    )


def shared_settings(config: ServerConfig) -> dict[str, str]:
    """Return the settings that processes sharing a model must agree on, by flag.

    These settings and package versions determine the compiled programs and their shapes.
    """
    settings = {name: getattr(config, name) for name in _SHARED_SETTINGS}
    settings |= {"cache" if k == "mode" else k: v for k, v in asdict(config.cache).items()}
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()}
    versions = {name: version(name) for name in _VERSIONED_PACKAGES}
    return flags | {"kvflow-jax": __version__} | versions
