"""Check on a device that tokens do not depend on the cache, in deterministic mode.

Part of ``experiments.device_check``.
"""

from __future__ import annotations

import gc
from typing import Any

import jax
import numpy as np

from kvflow_jax import LLM, SamplingParams
from kvflow_jax.api.load_config import Attention, Dtype, LoadConfig
from kvflow_jax.engine.cache_config import CacheConfig

PAGE = 16
NUM_PROMPTS, PREFIX, NUM_TOKENS = 8, 1024, 16  # the pool holds half of the prompts
SHAPE = "llama-3.2-1b"  # an accelerator's; CPUs take SMALL_SHAPE
SMALL_SHAPE = "smollm2-135m"


def exactness(
    device: jax.Device, dtype: Dtype, attention: Attention
) -> tuple[dict[str, Any], list[str]]:
    """Generate from cold prompts, then from prompts cached on the device and on the host.

    Returns:
        Figures, and a message if any token differs or nothing was loaded from the host.
    """
    on_cpu = device.platform == "cpu"
    prefix = PREFIX // 4 if on_cpu else PREFIX
    load = LoadConfig(
        SMALL_SHAPE if on_cpu else SHAPE, random_weights=True, dtype=dtype, attention=attention
    )
    cold, _ = _rounds(load, prefix, CacheConfig("gpu-only"), num_rounds=1)
    warm, stats = _rounds(load, prefix, CacheConfig("kvflow", host_cache_gib=2.0), num_rounds=3)
    different = sum(int(np.sum(np.array(cold[0]) != np.array(tokens))) for tokens in warm)
    figures = {
        f"exactness.{attention}.tokens": 3 * NUM_PROMPTS * NUM_TOKENS,
        f"exactness.{attention}.different": different,
        f"exactness.{attention}.tokens_from_cache": stats["cached"],
        f"exactness.{attention}.tokens_from_host": stats["host"],
    }
    problems = []
    if different:
        problems.append(f"exactness: {different} tokens depend on the cache")
    if not stats["host"]:
        problems.append("exactness: no block was loaded from the host, so nothing is checked")
    return figures, problems


def _rounds(
    load: LoadConfig, prefix: int, cache: CacheConfig, num_rounds: int
) -> tuple[list[list[list[int]]], dict[str, int]]:
    """Generate from the same prompts several times; return the tokens and counts of cache hits."""
    rng = np.random.default_rng(0)
    with LLM(
        load.model,
        progress=False,
        cache=cache,
        random_weights=load.random_weights,
        dtype=load.dtype,
        attention=load.attention,
        deterministic=True,
        seed=0,
        max_num_seqs=4,
        max_model_len=prefix + 4 * PAGE,
        num_pages=(NUM_PROMPTS // 2 * (prefix + 4 * PAGE)) // PAGE,
    ) as llm:
        prompts = rng.integers(0, llm.config.vocab_size, (NUM_PROMPTS, prefix + 3)).tolist()
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        counts = {"cached": 0, "host": 0}
        rounds = []
        for _ in range(num_rounds):
            tokens = []
            for first in range(0, NUM_PROMPTS, 2):
                for completion in llm.generate(prompts[first : first + 2], params, progress=False):
                    tokens.append(completion.token_ids)
                    counts["cached"] += completion.stats.num_cached_tokens
                    counts["host"] += completion.stats.num_cached_host_tokens
            rounds.append(tokens)
    gc.collect()
    return rounds, counts
