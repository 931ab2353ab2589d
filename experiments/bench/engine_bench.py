"""Benchmark the engine: prefill, decode, batching, cached start, start-up time, memory.

    python -m experiments.engine_bench --json FILE
    python -m experiments.engine_bench --quick     # tiny random model: under a minute

Prefill and decode are compared with ceilings of the same machine, measured in the same run: the
rate of XLA's matrix products in the model's dtype, and the rate at which BLAS reads the weights in
float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from experiments.make_folder import temporary_folder
from experiments.measure import (
    QUICK_ENGINE,
    BandwidthCeiling,
    MatmulCeiling,
    arguments,
    counted_compiles,
    prefill_flops,
    report,
    resident_bytes,
)
from kvflow_jax.api.load_config import Dtype
from kvflow_jax.api.options import LLMOptions
from kvflow_jax.speculation.config import NO_SPECULATION

REACH = {
    "prefill_vs_matmul_ceiling": ">= 0.80",
    "decode_b1_vs_ceiling": ">= 0.70",
    "decode_b8_1024_vs_ceiling": ">= 0.30",
    "device_idle_ms_per_step": "<= 0.3",
    "host_cpu_ms_per_step": "<= 2",
    "mixed_throughput_ratio": ">= 3",
    "cached_ttft_ratio": "<= 0.06",
    "compiles_after_warmup": "0",
    "ready_s": "<= 20",
    "rss_overhead_ratio": "<= 1.6",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        is_quick: whether this is only a check of the command.
        prompt_len: tokens of the prompt of the prefill.
        repeats: prefills.
        ceiling_s: time to measure a ceiling, before and after each prefill.
        decodes: (batch size, context tokens) of decode measurements; the first is of one request,
            the second also measures the host.
        decode_steps: decode steps of each.
        num_at_once, num_alone: requests of the batching gain, together and one after the other.
        gain_prompt_len, gain_output_len: tokens of each of them.
        num_mixed: requests of the mixed load.
        engine: arguments of ``LLM``.
    """

    is_quick: bool = False
    prompt_len: int = 2048
    repeats: int = 7
    ceiling_s: float = 1.0
    decodes: tuple[tuple[int, int], ...] = ((1, 256), (8, 256), (8, 1024))
    decode_steps: int = 40
    num_at_once: int = 32
    num_alone: int = 6
    gain_prompt_len: int = 512
    gain_output_len: int = 64
    num_mixed: int = 100
    engine: LLMOptions = field(
        default_factory=lambda: LLMOptions(pool_gib=1.0, speculative_config=NO_SPECULATION)
    )


FULL = Plan()
QUICK = Plan(
    is_quick=True,
    prompt_len=256,
    repeats=1,
    ceiling_s=0.1,
    decodes=((1, 64), (4, 64)),
    decode_steps=10,
    num_at_once=4,
    num_alone=2,
    gain_prompt_len=64,
    gain_output_len=8,
    num_mixed=10,
    engine=QUICK_ENGINE,
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, short prompts"
    )
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto", help="default: auto")
    parser.add_argument("--child", choices=["start"], help="internal: run as the measured process")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    plan = replace(plan, engine={**plan.engine, "dtype": options.dtype})
    if options.child:
        print(json.dumps(start(options.model, plan)))
        return 0
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        figures = measure(str(folder or options.model or "smollm2-135m"), plan)
    report(figures, REACH, options.json)
    return 0


def measure(model: str, plan: Plan) -> dict[str, Any]:
    """Return all figures of a model."""
    # The first start may have to convert and compile; the second one is measured.
    first = run_child(model, plan)
    second = first if plan.is_quick else run_child(model, plan)
    return {
        **engine_figures(model, plan),
        **decode_figures(model, plan),
        "first_start_s": first["ready_s"],
        "ready_s": second["ready_s"],
        "rss_overhead_ratio": second["rss_overhead_ratio"],
        "rss_gib": second["rss_gib"],
        "weights_and_pool_gib": second["weights_and_pool_gib"],
    }


def engine_figures(model: str, plan: Plan) -> dict[str, Any]:
    """Measure prefill against its ceiling, time to first token of a cached prompt, compilations."""
    from kvflow_jax import LLM, SamplingParams

    rng = np.random.default_rng(0)
    one_token = SamplingParams(max_tokens=1, temperature=0.0)
    with LLM(model, **plan.engine) as llm:
        config = llm.config

        def prompt(length: int) -> list[int]:
            return list(rng.integers(0, config.vocab_size, length).tolist())

        def ttft(ids: list[int]) -> float:
            stats = llm.generate(ids, one_token).stats
            assert stats.first_token_s is not None
            return stats.first_token_s - stats.arrival_s

        ttft(prompt(plan.prompt_len))
        ceiling = MatmulCeiling(config, llm.sizes.shapes.max_prefill_tokens, llm.model.dtype)
        cold, warm, rates = [], [], []
        for _ in range(plan.repeats):
            # The ceiling is the mean of measurements before and after each prefill: on a shared
            # machine both rates drift.
            before = ceiling.flops_per_s(plan.ceiling_s)
            ids = prompt(plan.prompt_len)
            cold.append(ttft(ids))
            rates.append((before + ceiling.flops_per_s(plan.ceiling_s)) / 2)
            warm.append(ttft(ids + prompt(16)))
        cold_s, warm_s = float(np.median(cold)), float(np.median(warm))
        ratios = [
            prefill_flops(config, plan.prompt_len) / cold_s / rate
            for cold_s, rate in zip(cold, rates, strict=True)
        ]
        return {
            "dtype": llm.model.dtype,
            "prefill_tokens_per_s": plan.prompt_len / cold_s,
            "prefill_vs_matmul_ceiling": float(np.median(ratios)),
            "matmul_gflops": float(np.median(rates)) / 1e9,
            "cold_ttft_ms": cold_s * 1e3,
            "cached_ttft_ms": warm_s * 1e3,
            "cached_ttft_ratio": warm_s / cold_s,
            "compiles_after_warmup": compiles_under_mixed_load(llm, rng, plan.num_mixed),
        }


def decode_figures(model: str, plan: Plan) -> dict[str, Any]:
    """Measure decode steps against the time to read weights and KV once, and the batching gain."""
    from experiments.bench.decode_monitor import measure_decode
    from kvflow_jax import LLM

    with LLM(model, **plan.engine) as llm:
        ceiling = BandwidthCeiling(llm.config)
        token_bytes = llm.sizes.pool.page_bytes / llm.sizes.pool.page_size
        figures: dict[str, Any] = {}
        for number, (batch_size, context_len) in enumerate(plan.decodes):
            before = ceiling.bytes_per_s()
            steps = measure_decode(llm, batch_size, context_len, plan.decode_steps)
            rate = (before + ceiling.bytes_per_s()) / 2
            read = llm.weights_bytes + batch_size * context_len * token_bytes
            name = f"decode_b{batch_size}_{context_len}"
            figures[f"{name}_ms"] = steps.step_ms
            figures[f"{name}_vs_ceiling"] = read / rate / (steps.step_ms / 1e3)
            figures[f"{name}_bandwidth_gb_per_s"] = rate / 1e9
            if number == 1:
                figures["device_idle_ms_per_step"] = steps.device_idle_ms
                figures["host_cpu_ms_per_step"] = steps.host_cpu_ms
        first = f"decode_b1_{plan.decodes[0][1]}"
        figures["decode_b1_ms"] = figures.pop(f"{first}_ms")
        figures["decode_b1_vs_ceiling"] = figures.pop(f"{first}_vs_ceiling")
        return {**figures, **batching_gain(llm, plan)}


def batching_gain(llm: Any, plan: Plan) -> dict[str, float]:
    """Measure tokens/s of requests together, and one after the other."""
    from kvflow_jax import SamplingParams

    rng = np.random.default_rng(1)
    prompt_len, output_len = plan.gain_prompt_len, plan.gain_output_len
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)

    def seconds_each(count: int, at_once: bool) -> float:
        prompts = rng.integers(0, llm.config.vocab_size, (count, prompt_len)).tolist()
        start = time.perf_counter()
        for batch in [prompts] if at_once else [[prompt] for prompt in prompts]:
            llm.generate(batch, params, progress=False)
        return (time.perf_counter() - start) / count

    # Half of the single requests run before and half after, as the machine's load drifts.
    before, after = plan.num_alone // 2, plan.num_alone - plan.num_alone // 2
    alone = seconds_each(before, False)
    together = seconds_each(plan.num_at_once, True)
    alone = (alone + seconds_each(after, False)) / 2
    return {
        "mixed_tokens_per_s": (prompt_len + output_len) / together,
        "sequential_tokens_per_s": (prompt_len + output_len) / alone,
        "mixed_throughput_ratio": alone / together,
    }


def compiles_under_mixed_load(llm: Any, rng: np.random.Generator, num_requests: int) -> int:
    """Count compilations under requests of mixed lengths and sampling, every fifth aborted."""
    from kvflow_jax import SamplingParams

    with counted_compiles() as compiles:
        streams = []
        for i in range(num_requests):
            ids = rng.integers(0, llm.config.vocab_size, int(rng.integers(1, 400))).tolist()
            params = SamplingParams(
                max_tokens=int(rng.integers(1, 24)),
                temperature=float(rng.choice([0.0, 0.7, 1.3])),
                top_k=int(rng.choice([0, 1, 40])),
                top_p=float(rng.choice([1.0, 0.9])),
                seed=int(rng.integers(0, 100)) if i % 2 else None,
                min_p=float(rng.choice([0.0, 0.1])),
                repetition_penalty=float(rng.choice([1.0, 1.2])),
                logit_bias={5: 2.0} if i % 7 == 0 else {},
                stop=["the"] if i % 4 == 0 else [],
                logprobs=3 if i % 5 == 0 else None,
                prompt_logprobs=1 if i % 11 == 0 else None,
            )
            streams.append(llm.stream(ids, params))
            if i % 3 == 0:
                next(streams[int(rng.integers(0, len(streams)))], None)
            if i % 5 == 0:
                streams.pop(int(rng.integers(0, len(streams)))).close()
        for stream in streams:
            for _ in stream:
                pass
    return len(compiles)


def run_child(model: str, plan: Plan) -> dict[str, Any]:
    """Run ``start`` in a new process; times count from its creation."""
    command = [sys.executable, "-m", "experiments.engine_bench", "--child", "start"]
    command += ["--dtype", plan.engine.get("dtype", "auto")]
    started = time.time()
    done = subprocess.run(
        [*command, "--model", model, *(["--quick"] if plan.is_quick else [])],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr}")
    child: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    child["ready_s"] = child.pop("first_token_at") - started
    return child


def start(model: str, plan: Plan) -> dict[str, Any]:
    """Load a model, generate, and measure this process: time of the first token, memory."""
    from kvflow_jax import LLM, SamplingParams

    import_only = resident_bytes()
    with LLM(model, **plan.engine, progress=False) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=1, temperature=0.0))
        first_token_at = time.time()
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, min(1000, llm.config.vocab_size), (16, 500)).tolist()
        llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0.0), progress=False)
        used = resident_bytes() - import_only
        allocated = llm.weights_bytes + llm.sizes.pool.nbytes
    return {
        "first_token_at": first_token_at,
        "rss_gib": used / 2**30,
        "weights_and_pool_gib": allocated / 2**30,
        "rss_overhead_ratio": used / allocated,
    }


if __name__ == "__main__":
    raise SystemExit(main())
