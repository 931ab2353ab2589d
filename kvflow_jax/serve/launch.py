"""From a ServerConfig to a running engine: the one place where the server meets the engine."""

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

# Of other releases random weights and programs may be others.
_MAKERS = ("jax", "jaxlib", "flax")
_SHARED = (
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
    """Load the model, build the pool, warm up, start the engine's thread. Takes seconds to minutes.

    Runs on a thread of its own while the server already answers ``/health``. Imports lazily, so
    that ``--help`` and a busy port cost no JAX import.

    Args:
        process_info: where several processes share the model: that of the first, which waits for the
            others.

    Returns:
        the engine, its tokenizer (None where the model has none), and the model's own name.

    Raises:
        ModelLoadError, CapacityError, ConfigError: with a message that says what to do.
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

    progress = sys.stderr.isatty()  # a bar in a log file is noise
    loaded = load(config, group=leader, progress=progress)
    if loaded.tokenizer is not None:
        _ = loaded.tokenizer.max_token_bytes  # looks at every token, once: not on the server's loop
    engine = build(loaded, engine_config(config), progress=progress, leader=leader)
    thread = EngineThread(engine) if leader is None else EngineThread(engine, leader.stalled_by)
    return thread, loaded.tokenizer, loaded.name


def load(config: ServerConfig, *, group: Group | None = None, progress: bool) -> LoadedModel:
    """The model, on the devices of this process or of a group's; see ``load_model``."""
    from kvflow_jax.api.launch import use_compilation_cache
    from kvflow_jax.distributed.consistency import check_consistent, model_properties
    from kvflow_jax.models.loading.load import load_model

    def agree(model: Model) -> None:
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
        agree=agree,
        page_size=config.page_size,
        max_model_len=config.max_model_len,
        progress=progress,
    )


def engine_config(config: ServerConfig) -> EngineConfig:
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
    """By flag, what decides programs and sizes: processes that share a model must agree on it."""
    settings = {name: getattr(config, name) for name in _SHARED}
    settings |= {"cache" if k == "mode" else k: v for k, v in asdict(config.cache).items()}
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()}
    return flags | {"kvflow-jax": __version__} | {name: version(name) for name in _MAKERS}
