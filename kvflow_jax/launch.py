"""From a loaded model to a running engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from kvflow_jax.batch import BatchShape
from kvflow_jax.config import EngineConfig, EngineSizes
from kvflow_jax.engine import Engine
from kvflow_jax.models.loading import LoadedModel
from kvflow_jax.protocols import WallClock
from kvflow_jax.runner import ModelRunner

log = logging.getLogger(__name__)


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs under ``cache_dir``, so that later starts only load them.

    Call before the first compilation. A folder the user has set in JAX's own configuration stays.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def build_engine(loaded: LoadedModel, config: EngineConfig, *, progress: bool = True) -> Engine:
    """Allocate the pool, compile every batch shape, and give back an engine that is ready.

    Raises:
        CapacityError: not even one request fits the memory there is.
        ConfigError: sizes that contradict the model.
    """
    device = next(iter(loaded.params.values())).device
    sizes = EngineSizes.resolve(config, loaded.config, loaded.model.dtype, device)
    runner = ModelRunner(loaded.model, loaded.params, sizes.pool, sizes.shapes)
    log.info("compiling %d batch shapes, or loading them compiled", len(sizes.shapes.shapes))
    start_s = time.monotonic()
    runner.warm_up(_progress_bar if progress else iter)
    log.info("%d programs ready in %.1f s", len(sizes.shapes.shapes), time.monotonic() - start_s)
    tokenizer = loaded.tokenizer
    return Engine(
        sizes,
        runner,
        WallClock(),
        tokenizer=tokenizer,
        vocab_size=loaded.config.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids if tokenizer else loaded.config.eos_token_ids,
        model_name=loaded.name,
        seed=config.seed,
    )


def _progress_bar(shapes: Iterable[BatchShape]) -> Iterator[BatchShape]:
    from tqdm.auto import tqdm

    yield from tqdm(shapes, desc="Compiling", unit="program")
