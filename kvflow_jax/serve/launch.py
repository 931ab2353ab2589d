"""Construction of a running engine from a ServerConfig; no other module builds the engine."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from kvflow_jax import __version__
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.protocols import BuiltEngine

if TYPE_CHECKING:
    from kvflow_jax.distributed.process_group import Group, Leader
    from kvflow_jax.models.loading.load import LoadedModel
    from kvflow_jax.models.model import Model

# Random weights and compiled programs depend on the releases of these packages.
_VERSIONED_PACKAGES = ("jax", "jaxlib", "flax")


def build_engine(config: ServerConfig, process_info: ProcessInfo | None = None) -> BuiltEngine:
    """Load the model, allocate the pool, warm up, start the engine thread; takes up to minutes.

    Runs on its own thread while the server already answers ``/health``. Imports are lazy, so that
    ``--help`` and a port in use do not wait for the import of JAX.

    Args:
        process_info: identity of process 0 if several processes share the model; it then waits
            for the others.

    Returns:
        the engine, its tokenizer (None if the model has none), the model's own name, and its
        sampling defaults.

    Raises:
        ModelLoadError, CapacityError, ConfigError: the message names the remedy.
    """
    if process_info is None:
        return _build(config, None)

    from kvflow_jax.distributed.rendezvous import start_leader

    leader = start_leader(process_info, shared_settings(config), config.processes.join_timeout_s)
    try:
        return _build(config, leader)
    except Exception as error:
        leader.fail(str(error))
        raise


def _build(config: ServerConfig, leader: Leader | None) -> BuiltEngine:
    from kvflow_jax.api.launch import build_engine as build
    from kvflow_jax.api.launch import cache_dir_of, cache_of_start
    from kvflow_jax.api.sampling_defaults import sampling_defaults
    from kvflow_jax.engine.engine_thread import EngineThread

    defaults = sampling_defaults(config.load)
    # A progress bar in a log file is noise.
    progress = sys.stderr.isatty()
    with cache_of_start(config.load):
        loaded = load(config, group=leader, progress=progress)
        if loaded.tokenizer is not None:
            # Computed here once, over the whole vocabulary, to keep it off the event loop.
            _ = loaded.tokenizer.max_token_bytes
        engine = build(
            loaded,
            config.engine,
            progress=progress,
            leader=leader,
            cache_dir=cache_dir_of(config.load),
            prepares_grammars=True,  # while no one is served
        )
    thread = EngineThread(engine) if leader is None else EngineThread(engine, leader.stalled_by)
    return thread, loaded.tokenizer, loaded.name, defaults


def load(config: ServerConfig, *, group: Group | None = None, progress: bool) -> LoadedModel:
    """Load the model onto the devices of this process or of a group; see ``load_model``."""
    from kvflow_jax.api.launch import load as load_onto_devices
    from kvflow_jax.distributed.consistency import check_consistent, model_properties

    def check_model(model: Model) -> None:
        if group is not None:
            check_consistent(group, model_properties(model))

    return load_onto_devices(config.load, config.engine, check_model=check_model, progress=progress)


def shared_settings(config: ServerConfig) -> dict[str, str]:
    """Return the settings that processes sharing a model must agree on, by flag.

    These settings and package versions determine the compiled programs and their shapes.
    """
    flags = {
        setting.option: str(setting.value)
        for part in (*config.load.configs(), *config.engine.configs())
        for setting in part.settings()
        if not setting.flag.is_per_process
    }
    versions = {name: version(name) for name in _VERSIONED_PACKAGES}
    return flags | {"kvflow-jax": __version__} | versions
