"""From a ServerConfig to a running engine: the one place where the server meets the engine."""

from __future__ import annotations

import sys

from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.contracts import Engine, Tokenizer


def build_engine(config: ServerConfig) -> tuple[Engine, Tokenizer | None, str]:
    """Load the model, build the pool, warm up, start the engine's thread. Takes seconds to minutes.

    Runs on a thread of its own while the server already answers ``/health``. Imports lazily, so
    that ``--help`` and a busy port cost no JAX import.

    Returns:
        the engine, its tokenizer (None where the model has none), and the model's own name.

    Raises:
        ModelLoadError, CapacityError, ConfigError: with a message that says what to do.
    """
    from kvflow_jax.config import EngineConfig
    from kvflow_jax.engine_thread import EngineThread
    from kvflow_jax.launch import build_engine as build
    from kvflow_jax.launch import use_compilation_cache
    from kvflow_jax.models.loading import load_model

    progress = sys.stderr.isatty()  # a bar in a log file is noise
    use_compilation_cache(config.cache_dir)
    loaded = load_model(
        config.model,
        dtype=config.dtype,
        cache_dir=config.cache_dir,
        random_weights=config.random_weights,
        seed=config.seed or 0,
        attention=config.attention,
        tensor_parallel=config.tensor_parallel,
        page_size=config.page_size,
        progress=progress,
    )
    sizes = EngineConfig(
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
    if loaded.tokenizer is not None:
        _ = loaded.tokenizer.max_token_bytes  # looks at every token, once: not on the server's loop
    return EngineThread(build(loaded, sizes, progress=progress)), loaded.tokenizer, loaded.name
