"""Arms in real execution on this machine, each beside its simulation in virtual time.

The model is in float32 on every machine, so that runs of several compare.
The machine's steps are timed between the arms (``experiments.bench.fit_profile``), and one profile
is fitted to all of these times. The load of a shared machine changes from minute to minute: with a
profile for each arm, the comparison of arms would be one of profiles. Where host and device memory
are one, as on CPU, the host link is emulated at the A10G's ratio.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.bench import fit_profile
from experiments.compare.arms import ARMS, Arm, figures
from experiments.compare.call_hints import HintsOf, declared
from experiments.compare.driver import Driver, RealServer
from experiments.compare.result_cache import ResultCache
from experiments.compare.run_cell import PAGE, Setting, run_cell
from experiments.measure import counted_compiles, write_json
from experiments.workloads import agents, paper
from experiments.workloads.base import Sizes, Workload
from kvflow_jax.api.launch import build_engine, use_compilation_cache
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.engine.sizes import GIB
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.profile import ModelShape, Profile
from kvflow_jax.speculation.config import NO_SPECULATION

LINK_RATIO = A10G.link_ratio(LLAMA_3_1_8B)
MAX_PREFILL = 256
# Arms that behave identically, as kvflow's do in the cycle, differed by this share of their
# makespan on a shared machine.
NOISE = 0.1
TIMED_ROUNDS = 1  # of timed steps between two arms
TIMEOUT_S = 900.0  # longer than any arm takes, so that a hang is noticed


@dataclass(frozen=True)
class EngineSetting:
    """The capacity of a real engine.

    Attributes:
        pool_tokens, host_tokens: capacity of each tier, tokens.
        max_num_seqs: requests that run at once.
        max_model_len: tokens of the longest request.
        deterministic: see ``EngineConfig``; two batch shapes, which compile in seconds.
    """

    pool_tokens: int
    host_tokens: int
    max_num_seqs: int
    max_model_len: int
    deterministic: bool = False


class Machine:
    """This machine with one model loaded. Runs arms one after the other.

    Args:
        timer: of the steps that profiles are fitted to; None: those of ``fit_profile``.
    """

    def __init__(self, loaded: LoadedModel, timer: fit_profile.StepTimer | None = None) -> None:
        self.shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
        self._loaded = loaded
        self._timer = timer or fit_profile.StepTimer(loaded)

    def times(self) -> list[Any]:
        """Time the steps as the machine runs them now; see ``StepTimer.times``."""
        return list(self._timer.times(TIMED_ROUNDS).tolist())

    def profile(self, times: Iterable[list[Any]], link_bytes_per_s: float) -> Profile:
        """Fit a profile of the machine to several ``times``."""
        samples = self._timer.samples(np.concatenate([np.array(one) for one in times]))
        return replace(fit_profile.fit(self.shape, samples), link_bytes_per_s=link_bytes_per_s)

    def run(
        self, workload: Workload, arm: Arm, setting: EngineSetting
    ) -> tuple[dict[str, Any], float]:
        """Run a workload; return the arm's figures and the rate of its host link, bytes/s."""
        is_tiered = arm.cache.mode != "gpu-only"
        host_gib = setting.host_tokens * self.shape.kv_bytes_per_token / GIB
        cache = replace(
            arm.cache,
            host_cache_gib=host_gib if is_tiered else None,
            link_ratio=LINK_RATIO if jax.default_backend() == "cpu" else None,
        )
        config = EngineConfig(
            max_model_len=setting.max_model_len,
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=MAX_PREFILL,
            page_size=PAGE,
            num_pages=(workload.total if arm.is_unlimited else setting.pool_tokens) // PAGE + 1,
            seed=0,
            speculative_config=NO_SPECULATION,  # the paper's engines have none
            deterministic=setting.deterministic,
            cache=cache,
        )
        return run_on_engine(self._loaded, config, workload, hints_of=arm.hints_of)

    def simulate(
        self, workload: Workload, arm: Arm, setting: EngineSetting, profile: Profile
    ) -> dict[str, Any]:
        """Run the same workload in virtual time; return the arm's figures."""
        virtual = Setting(
            self.shape,
            profile,
            setting.pool_tokens,
            setting.host_tokens,
            setting.max_num_seqs,
            MAX_PREFILL,
        )
        return run_cell(virtual, workload, arm).figures


def run_on_engine(
    loaded: LoadedModel, config: EngineConfig, workload: Workload, *, hints_of: HintsOf = declared
) -> tuple[dict[str, Any], float]:
    """Run a workload on a new engine; return its figures and the rate of its link, bytes/s.

    Args:
        hints_of: see ``Driver``.

    Raises:
        KVFlowError: a call failed.
        TimeoutError: the workload took longer than TIMEOUT_S.
    """
    built = build_engine(loaded, config, progress=False)
    link_bytes_per_s = built.transfers.bytes_per_s[Direction.LOAD]
    engine = EngineThread(built)
    try:
        driver = Driver(workload, RealServer(engine), hints_of=hints_of)
        with counted_compiles() as compiles:
            driver.start()
            records = driver.wait(TIMEOUT_S)
        engine.check_integrity()
        measured = figures(records, driver.warm_stats or EngineStats(), engine.stats)
        measured["compiles"] = len(compiles)
    finally:
        engine.close()
    # Free the pool before the next engine allocates its own.
    del driver, engine, built
    gc.collect()
    return measured, link_bytes_per_s


def scaled_workloads(
    vocab_size: int, seed: int, is_quick: bool
) -> list[tuple[Workload, EngineSetting]]:
    """Return the cycle, the branching graph and 32 concurrent runs, scaled to this machine."""
    sizes = Sizes(320, 32, 16) if is_quick else Sizes(1024, 32, 32)
    ring = paper.cycle(
        num_agents=10,
        num_rounds=1 if is_quick else 2,
        sizes=sizes,
        vocab_size=vocab_size,
        seed=seed,
    )
    graph = agents.branching(
        num_runs=1 if is_quick else 2,
        num_rounds=1 if is_quick else 3,
        sizes=sizes,
        vocab_size=vocab_size,
        seed=seed,
    )
    short = Sizes(48, 16, 8) if is_quick else Sizes(128, 32, 16)
    many = paper.concurrent(
        num_runs=32, num_agents=2, num_rounds=1, sizes=short, vocab_size=vocab_size, seed=seed
    )
    # All share one engine size, so that its programs are compiled once.
    own = sizes.dynamic + sizes.output + 2 * PAGE
    setting = EngineSetting(4 * sizes.fixed + own, 14 * sizes.fixed, 8, ring.longest)
    return [(ring, setting), (graph, setting), (many, setting)]


def main(arms: list[str], options: argparse.Namespace) -> int:
    """Run ``experiments.paper --mode real``."""
    arms = [arm for arm in arms if not ARMS[arm].is_oracle and not ARMS[arm].is_unlimited]
    use_compilation_cache(default_cache_dir())
    loaded = load_model(options.model, dtype="float32", progress=False)
    asked = {"mode": "real", "model": options.model, "quick": options.quick, "arms": arms}
    asked["seed"] = options.seed
    results_cache = ResultCache(options.json, asked)
    machine = Machine(loaded)
    workloads = scaled_workloads(loaded.config.vocab_size, options.seed, options.quick)
    jobs = {
        f"{workload.name} {arm}": (workload, ARMS[arm], setting)
        for workload, setting in workloads
        for arm in arms
    }
    for key, job in tqdm(jobs.items(), unit="arm", disable=not sys.stderr.isatty()):
        if key not in results_cache:
            before = machine.times()
            real, link_bytes_per_s = machine.run(*job)
            results_cache.put(key, {"real": real, "link": link_bytes_per_s, "times": before})
    results_of: dict[str, Any] = {}
    all_times = [result["times"] for result in results_cache.results.values()]
    for key, job in jobs.items():
        result = results_cache.results[key]
        profile = machine.profile(all_times, result["link"])
        virtual = machine.simulate(*job, profile)
        results_of[key] = {"real": result["real"], "sim": virtual, "profile": profile.to_dict()}
        print(result_line(key, results_of[key]), flush=True)
    results = {**asked, "link_ratio": LINK_RATIO, "arms_played": results_of}
    results |= simulation_errors(results_of)
    print(
        f"largest error of virtual time: {results['worst_error']:.1%}; same order of arms whose "
        f"makespans differ by more than {NOISE:.0%}:"
    )
    print("  " + ", ".join(f"{name}: {same}" for name, same in results["same_order"].items()))
    write_json(results, options.json)
    results_cache.close()
    return 0


def result_line(key: str, result: Mapping[str, Any]) -> str:
    """Format both makespans of an arm and the error of virtual time."""
    real, virtual = result["real"]["makespan_s"], result["sim"]["makespan_s"]
    return (
        f"{key:28}{real:8.1f} s real, {virtual:8.1f} s in virtual time ({virtual / real - 1:+.1%})"
    )


def simulation_errors(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the errors of virtual time, of makespans and of ratios, and whether it ranks alike.

    A ratio is that of two arms of a workload, in both directions: when one comes out too fast and
    the other too slow, the ratio's error exceeds either. Arms whose real makespans are within NOISE
    of each other may be in either order.
    """
    errors = {
        key: result["sim"]["makespan_s"] / result["real"]["makespan_s"] - 1
        for key, result in results.items()
    }
    ratios: dict[str, float] = {}
    same: dict[str, bool] = {}
    for key in results:
        workload = key.rsplit(" ", 1)[0]
        arms = [other for other in results if other.rsplit(" ", 1)[0] == workload]
        ratios[workload] = max((1 + errors[a]) / (1 + errors[b]) - 1 for a in arms for b in arms)
        same[workload] = all(
            results[a]["sim"]["makespan_s"] < results[b]["sim"]["makespan_s"]
            for a in arms
            for b in arms
            if results[a]["real"]["makespan_s"] < (1 - NOISE) * results[b]["real"]["makespan_s"]
        )
    return {
        "relative_error": errors,
        "worst_error": max(map(abs, errors.values())),
        "ratio_error": ratios,
        "worst_ratio_error": max(ratios.values()),
        "order_tolerance": NOISE,
        "same_order": same,
    }
