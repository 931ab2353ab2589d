"""Ten agents in a cycle on this machine and in virtual time: gpu-only, hicache and kvflow.

    python -m experiments.cycle --json experiments/results/cycle_cpu.json

The pool holds four of the ten fixed prefixes and room for one call. The host link is emulated, on
CPU host and device memory being one: to reload a token takes as large a share of computing it as
in the paper's setting (arXiv 2507.07400 v1), Llama-3.1-8B in bfloat16 on an A10G over 2 GB/s:

    131,072 bytes / 2 GB/s = 65.5 us  over  13.96 GFLOP / (0.6 * 70 TFLOP/s) = 332 us  =  0.197

The same arms are then played in virtual time, with profiles fitted to this machine around each
(``experiments.sim.fit``), and the paper's own setting with assumed rates of an A10G.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.arms import ARMS, PAPER_ARMS, figures, speedups
from experiments.driver import Driver, RealServer
from experiments.measure import arguments, counted_compiles, report
from experiments.sim import fit
from experiments.sim.machines import A10G, LLAMA_3_1_8B, SMOLLM2_135M, THIS_MACHINE
from experiments.sim.profile import ModelShape, Profile
from experiments.sim.simulation import Simulation
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.paper import cycle
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.cache_settings import CacheConfig
from kvflow_jax.config import GIB, EngineConfig
from kvflow_jax.engine_thread import EngineThread
from kvflow_jax.launch import build_engine, use_compilation_cache
from kvflow_jax.models.checkpoint import default_cache_dir
from kvflow_jax.models.loading import LoadedModel, load_model

PAGE, NUM_AGENTS, NUM_RESIDENT = 16, 10, 4
SIZES = Sizes(fixed=1024, dynamic=32, output=32)
PAPER_SIZES = Sizes(fixed=8192, dynamic=32, output=32)
MAX_NUM_SEQS, MAX_PREFILL = 4, 256
LINK_RATIO = A10G.link_ratio(LLAMA_3_1_8B)
TIMED = 2  # rounds of timed steps between two arms
# Longer than any arm takes, so that one that hangs is noticed.
TIMEOUT_S = 600.0

REACH = {
    "kvflow.fixed_recomputed_max": f"<= {PAGE - 1}",
    "kvflow.stall_share": "< 0.05",
    "hicache.stall_share": "well above kvflow's",
    "compiles": "0",
    "worst_error": "<= 0.2",
    "same_order": "true",
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["real", "sim", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=2, help="after the one that warms")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    results: dict[str, Any] = {"link_ratio": LINK_RATIO, "rounds": options.rounds}
    if options.mode == "sim":
        profile = Profile.read(THIS_MACHINE)
        results |= simulated(SMOLLM2_135M, dict.fromkeys(PAPER_ARMS, profile), options.rounds)
    else:
        use_compilation_cache(default_cache_dir())
        loaded = load_model(options.model, progress=False)
        shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
        profiles, measured = real(loaded, shape, options.rounds)
        results |= measured
        if options.mode == "both":
            results["profiles"] = {name: one.to_dict() for name, one in profiles.items()}
            results |= simulated(shape, profiles, options.rounds)
            results |= compared(results["real"], results["sim"])
    report(*flat(results), options.json)


def real(
    loaded: LoadedModel, shape: ModelShape, num_rounds: int
) -> tuple[dict[str, Profile], dict[str, Any]]:
    """The arms on this machine, one after the other, and what the machine was like under each.

    Its profile is fitted to steps timed before and after the arm: what else runs on a shared
    machine changes from minute to minute. The link is the one that the arm's engine emulates.
    """
    workload = _workload(SIZES, num_rounds, shape.vocab_size)
    timer = fit.StepTimer(loaded)
    arms, profiles = {}, {}
    times = timer.times(TIMED)
    for name in PAPER_ARMS:
        cache = ARMS[name].cache
        host_gib = 0.75 if cache.mode != "gpu-only" else None  # for all prefixes, and suffixes
        cache = CacheConfig(mode=cache.mode, host_cache_gib=host_gib, link_ratio=LINK_RATIO)
        config = EngineConfig(
            max_model_len=workload.longest,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_PREFILL,
            page_size=PAGE,
            num_pages=_pool_tokens(SIZES) // PAGE,
            seed=0,
            cache=cache,
        )
        built = build_engine(loaded, config, progress=False)
        link_bytes_per_s = built.transfers.bytes_per_s[Direction.LOAD]
        engine = EngineThread(built)
        try:
            driver = Driver(workload, RealServer(engine))
            with counted_compiles() as compiles:
                driver.start()
                records = driver.finish(TIMEOUT_S)
            engine.check_integrity()
            assert driver.warm_stats is not None
            arms[name] = figures(records, driver.warm_stats, engine.stats)
            arms[name]["compiles"] = len(compiles)
        finally:
            engine.close()
        print(f"real {name}: {arms[name]['makespan_s']:.1f} s", flush=True)
        del engine, built
        gc.collect()  # its pool, before the next is made
        before, times = times, timer.times(TIMED)
        profile = fit.fit(shape, timer.samples(np.concatenate([before, times])))
        profiles[name] = replace(profile, link_bytes_per_s=link_bytes_per_s)
    return profiles, {"real": arms, "real_speedup": speedups(arms)}


def simulated(
    shape: ModelShape, profiles: Mapping[str, Profile], num_rounds: int
) -> dict[str, Any]:
    """The same arms in virtual time, and the paper's setting."""
    arms = play(_workload(SIZES, num_rounds, shape.vocab_size), SIZES, shape, profiles, MAX_PREFILL)
    paper = play(
        _workload(PAPER_SIZES, num_rounds, LLAMA_3_1_8B.vocab_size),
        PAPER_SIZES,
        LLAMA_3_1_8B,
        dict.fromkeys(PAPER_ARMS, A10G),
        2048,
    )
    return {
        "sim": arms,
        "sim_speedup": speedups(arms),
        "a10g": paper,
        "a10g_speedup": speedups(paper),
        "a10g_kvflow_over_hicache": paper["hicache"]["makespan_s"] / paper["kvflow"]["makespan_s"],
    }


def play(
    workload: Workload,
    sizes: Sizes,
    shape: ModelShape,
    profiles: Mapping[str, Profile],
    max_prefill: int,
) -> dict[str, dict[str, Any]]:
    """Every arm's figures in virtual time."""
    arms = {}
    for name in PAPER_ARMS:
        cache = ARMS[name].cache
        simulation = Simulation(
            shape,
            profiles[name],
            cache,
            pool_tokens=_pool_tokens(sizes),
            host_tokens=int(0.75 * GIB) // shape.kv_bytes_per_token
            if sizes is SIZES
            else (NUM_AGENTS + NUM_RESIDENT) * sizes.fixed,
            max_num_seqs=MAX_NUM_SEQS,
            max_prefill_tokens=max_prefill,
            max_model_len=workload.longest,
        )
        driver = Driver(workload, simulation)
        driver.start()
        simulation.run()
        records = driver.finish(0)
        assert driver.warm_stats is not None
        arms[name] = figures(records, driver.warm_stats, simulation.stats)
    return arms


def compared(
    measured: Mapping[str, Mapping[str, Any]], simulated: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Relative errors of virtual time, and whether it ranks the arms as they are."""
    errors = {
        name: {
            key: simulated[name][key] / arm[key] - 1
            for key in ("makespan_s", "latency_mean_s", "latency_p99_s", "ttft_mean_s")
        }
        for name, arm in measured.items()
    }

    def order(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
        return sorted(arms, key=lambda name: float(arms[name]["makespan_s"]))

    return {
        "relative_error": errors,
        "worst_error": max(abs(one["makespan_s"]) for one in errors.values()),
        "same_order": order(measured) == order(simulated),
    }


def flat(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """One line a figure of an arm, ``where.arm.figure``, and what some of them are to reach."""
    lines: dict[str, Any] = {}
    for key, value in results.items():
        if key in ("real", "sim", "a10g"):
            for arm, values in value.items():
                lines |= {f"{key}.{arm}.{name}": one for name, one in values.items()}
        else:
            lines[key] = value
    reach = {line: text for line in lines for goal, text in REACH.items() if line.endswith(goal)}
    return lines, reach


def _pool_tokens(sizes: Sizes) -> int:
    """For some prefixes, and what a call adds to its own."""
    own = -(-(sizes.dynamic + sizes.output) // PAGE) * PAGE
    return NUM_RESIDENT * sizes.fixed + own + PAGE


def _workload(sizes: Sizes, num_rounds: int, vocab_size: int) -> Workload:
    return cycle(num_agents=NUM_AGENTS, num_rounds=num_rounds, sizes=sizes, vocab_size=vocab_size)


if __name__ == "__main__":
    main()
