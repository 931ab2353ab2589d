"""Measure a model on a device: its rates in the engine, and the paper's cycle under three arms.

Part of ``experiments.device_check``.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from experiments.compare.arms import ARMS, PAPER_ARMS, Arm, speedups
from experiments.compare.run_cell import PAGE
from experiments.measure import prefill_flops
from experiments.paper.real import LINK_RATIO, run_on_engine
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax import LLM, SamplingParams
from kvflow_jax.api.launch import load as load_onto_devices
from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.sizes import GIB
from kvflow_jax.models.dtypes import NO_QUANTIZATION
from kvflow_jax.speculation.config import NO_SPECULATION

PREFILL = 2048  # tokens of the timed prompt
CYCLE_FIGURES = (
    "makespan_s",
    "ttft_mean_s",
    "latency_mean_s",
    "stall_share",
    "tokens_recomputed",
    "tokens_from_host",
    "tokens_from_device",
    "compiles",
)


@dataclass(frozen=True)
class Plan:
    """One engine size for all measurements, so that its programs are compiled once."""

    sizes: Sizes
    num_rounds: int
    link_ratio: float | None

    @classmethod
    def on(cls, device: jax.Device) -> Plan:
        """Return the sizes for a device."""
        if device.platform == "cpu":
            # Host and device memory are one, so the link is emulated.
            return cls(Sizes(384, 16, 8), 1, LINK_RATIO)
        return cls(Sizes(4096, 32, 32), 2, None)

    def engine(self, arm: Arm, page_bytes: int) -> EngineConfig:
        """Return a configuration: a pool for four prefixes and one call, a host tier for all."""
        own = self.sizes.dynamic + self.sizes.output + 2 * PAGE
        host_pages = 14 * self.sizes.fixed // PAGE
        is_tiered = arm.cache.mode != "gpu-only"
        cache = replace(
            arm.cache,
            host_cache_gib=host_pages * page_bytes / GIB if is_tiered else None,
            link_ratio=self.link_ratio if is_tiered else None,
        )
        return EngineConfig(
            speculative_config=NO_SPECULATION,
            max_model_len=max(self.sizes.fixed + own, PREFILL + PAGE),
            max_num_seqs=8,
            num_pages=max(4 * self.sizes.fixed + own, PREFILL + 512) // PAGE,
            page_size=PAGE,
            seed=0,
            cache=cache,
        )


def in_place(runner: Any) -> bool:
    """True if the largest step of a ``ModelRunner`` updates its donated pool without a copy."""
    analysis = runner.memory_analysis(runner.shapes.shapes[-1])
    pool_bytes = runner.pool_spec.nbytes
    aliased = analysis.alias_size_in_bytes >= pool_bytes
    return bool(aliased and analysis.temp_size_in_bytes < pool_bytes)


def model_rates(load: LoadConfig, plan: Plan, ceiling: dict[str, Any]) -> dict[str, Any]:
    """Measure prefill and decode in the engine, also as fractions of the ceilings."""
    config = plan.engine(ARMS["gpu-only"], 0)
    start = time.monotonic()
    with LLM(
        load.model,
        progress=False,
        cache=config.cache,
        random_weights=load.random_weights,
        dtype=load.dtype,
        quantize=load.quantize,
        attention=load.attention,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        num_pages=config.num_pages,
        speculative_config=NO_SPECULATION,
    ) as llm:
        ready_s = time.monotonic() - start
        rng = np.random.default_rng(0)
        greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}

        def generate(num_prompts: int, length: int, num_tokens: int) -> Any:
            prompts = rng.integers(0, llm.config.vocab_size, (num_prompts, length)).tolist()
            params = SamplingParams(max_tokens=num_tokens, **greedy)
            return llm.generate(prompts, params, progress=False)

        generate(1, PREFILL, 1)
        stats = [generate(1, PREFILL, 1)[0].stats for _ in range(3)]
        prefill_s = min(s.first_token_s - s.arrival_s for s in stats)
        figures = {
            "name": load.model,
            "random_weights": load.random_weights,
            "dtype": load.dtype,
            "ready_s": ready_s,
            "pool_in_place": in_place(llm.runner),
            "prefill_tokens_per_s": PREFILL / prefill_s,
            "prefill_vs_matmul": prefill_flops(llm.config, PREFILL)
            / prefill_s
            / (ceiling["matmul_tflops"] * 1e12),
        }
        for batch in (1, 8):
            done = [c.stats for c in generate(batch, 256, 33)]
            last_start = max(s.first_token_s for s in done)
            decode_s = (max(s.finished_s for s in done) - last_start) / 32
            figures[f"decode_b{batch}_256_ms"] = decode_s * 1e3
            if batch == 1:
                bound_s = llm.weights_bytes / (ceiling["read_gb_s"] * 1e9)
                figures["decode_b1_vs_bandwidth"] = bound_s / decode_s
    gc.collect()  # frees the weights before they are loaded again
    name = f"model.{load.attention}"
    if load.quantize != NO_QUANTIZATION:
        name += f".{load.quantize}"
    return {f"{name}.{key}": value for key, value in figures.items()}


def cycle_arms(load: LoadConfig, plan: Plan) -> dict[str, Any]:
    """Run the paper's cycle of ten agents, in a pool for four prefixes, under its three arms."""
    loaded = load_onto_devices(load, EngineConfig(page_size=PAGE), progress=False)
    workload = cycle(
        num_agents=10,
        num_rounds=plan.num_rounds,
        sizes=plan.sizes,
        vocab_size=loaded.config.vocab_size,
    )
    page = PoolSpec(
        loaded.config.num_layers,
        1,
        PAGE,
        loaded.config.num_kv_heads,
        loaded.config.head_dim,
        load.dtype,
    )
    arms: dict[str, dict[str, Any]] = {}
    figures: dict[str, Any] = {}
    for arm in PAPER_ARMS:
        config = plan.engine(ARMS[arm], page.page_bytes)
        arms[arm], link = run_on_engine(loaded, config, workload)
        print(f"cycle {arm}: {arms[arm]['makespan_s']:.2f} s", flush=True)
        figures |= {f"cycle.{arm}.{key}": arms[arm][key] for key in CYCLE_FIGURES}
        if arm != "gpu-only":
            figures[f"cycle.{arm}.link_gb_s"] = link / 1e9
    figures["cycle.speedup"] = speedups(arms)
    figures["cycle.kvflow_over_hicache"] = (
        arms["hicache"]["makespan_s"] / arms["kvflow"]["makespan_s"]
    )
    return figures
