"""The engine on this machine: prefill rate, cached start, compilations, start-up, memory.

python -m experiments.engine_bench --json FILE
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.measure import (
    MatmulCeiling,
    arguments,
    counted_compiles,
    prefill_flops,
    report,
    resident_bytes,
)

REACH = {
    "prefill_vs_matmul_ceiling": ">= 0.65",
    "cached_ttft_ratio": "<= 0.06",
    "compiles_after_warmup": "0",
    "ready_s": "<= 20",
    "rss_overhead_ratio": "<= 1.6",
}
PROMPT_LEN = 2048
POOL_GIB = 1.0


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--child", choices=["start"], help="internal: be a measured process")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(start(options.model)))
        return
    # Twice: the first start may have to convert and compile, the second is the figure.
    first = run_child(options.model)
    second = run_child(options.model)
    figures = {
        **engine_figures(options.model),
        "first_start_s": first["ready_s"],
        "ready_s": second["ready_s"],
        "rss_overhead_ratio": second["rss_overhead_ratio"],
        "rss_gib": second["rss_gib"],
        "weights_and_pool_gib": second["weights_and_pool_gib"],
    }
    report(figures, REACH, options.json)


def engine_figures(model: str) -> dict[str, Any]:
    from kvflow_jax import LLM, SamplingParams

    rng = np.random.default_rng(0)
    one = SamplingParams(max_tokens=1, temperature=0.0)
    with LLM(model, pool_gib=POOL_GIB) as llm:
        config = llm.config

        def prompt(length: int) -> list[int]:
            return rng.integers(0, config.vocab_size, length).tolist()

        def ttft(ids: list[int]) -> float:
            stats = llm.generate(ids, one).stats
            assert stats.first_token_s is not None
            return stats.first_token_s - stats.arrival_s

        ttft(prompt(PROMPT_LEN))
        ceiling = MatmulCeiling(config, llm.sizes.shapes.max_prefill_tokens)
        cold, warm, rates = [], [], []
        for _ in range(7):
            # The ceiling is the mean of the seconds before and after each prefill: on a shared
            # machine both change while one looks.
            before = ceiling.flops_per_s()
            ids = prompt(PROMPT_LEN)
            cold.append(ttft(ids))
            rates.append((before + ceiling.flops_per_s()) / 2)
            warm.append(ttft(ids + prompt(16)))
        cold_s, warm_s = float(np.median(cold)), float(np.median(warm))
        ratios = [
            prefill_flops(config, PROMPT_LEN) / s / r for s, r in zip(cold, rates, strict=True)
        ]
        return {
            "prefill_tokens_per_s": PROMPT_LEN / cold_s,
            "prefill_vs_matmul_ceiling": float(np.median(ratios)),
            "matmul_gflops": float(np.median(rates)) / 1e9,
            "cold_ttft_ms": cold_s * 1e3,
            "cached_ttft_ms": warm_s * 1e3,
            "cached_ttft_ratio": warm_s / cold_s,
            "compiles_after_warmup": compiles_under_mixed_load(llm, rng),
        }


def compiles_under_mixed_load(llm: Any, rng: np.random.Generator) -> int:
    """100 requests of mixed lengths, arrivals and sampling, every fifth aborted."""
    from kvflow_jax import SamplingParams

    with counted_compiles() as compiles:
        streams = []
        for i in range(100):
            ids = rng.integers(0, llm.config.vocab_size, int(rng.integers(1, 400))).tolist()
            params = SamplingParams(
                max_tokens=int(rng.integers(1, 24)),
                temperature=float(rng.choice([0.0, 0.7, 1.3])),
                top_k=int(rng.choice([0, 1, 40])),
                top_p=float(rng.choice([1.0, 0.9])),
                seed=int(rng.integers(0, 100)) if i % 2 else None,
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


def run_child(model: str) -> dict[str, Any]:
    """Start a process that loads, generates and measures itself; times are from its spawning."""
    command = [sys.executable, "-m", "experiments.engine_bench", "--child", "start"]
    started = time.time()
    done = subprocess.run(
        [*command, "--model", model],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr}")
    child = json.loads(done.stdout.splitlines()[-1])
    child["ready_s"] = child.pop("first_token_at") - started
    return child


def start(model: str) -> dict[str, Any]:
    """Load, answer one prompt, do some work, and say how much memory that took."""
    from kvflow_jax import LLM, SamplingParams

    import_only = resident_bytes()
    with LLM(model, pool_gib=POOL_GIB, progress=False) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=1, temperature=0.0))
        first_token_at = time.time()
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, 1000, (16, 500)).tolist()
        llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0.0), progress=False)
        used = resident_bytes() - import_only
        owned = llm.weights_bytes + llm.sizes.pool.nbytes
    return {
        "first_token_at": first_token_at,
        "rss_gib": used / 2**30,
        "weights_and_pool_gib": owned / 2**30,
        "rss_overhead_ratio": used / owned,
    }


if __name__ == "__main__":
    main()
