"""Arms on this machine's real execution, and beside it what virtual time makes of the same.

The machine is timed between the arms (``experiments.bench.fit_profile``), and one profile is
fitted to all of that: what else runs on a shared machine changes from minute to minute, and with a
profile for each
arm it would be that which is compared. The host link is emulated at the A10G's ratio where host and
device memory are one, as on CPU.
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
from experiments.compare.driver import Driver, RealServer
from experiments.compare.result_cache import ResultCache
from experiments.compare.run_cell import PAGE, Setting, play
from experiments.measure import counted_compiles, write_json
from experiments.workloads import agents, paper
from experiments.workloads.base import Sizes, Workload
from kvflow_jax.api.launch import build_engine, use_compilation_cache
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.engine.config import GIB, EngineConfig
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.profile import ModelShape, Profile

LINK_RATIO = A10G.link_ratio(LLAMA_3_1_8B)
MAX_PREFILL = 256
# Arms that do the very same, as kvflow's do in the cycle, were so far apart on a shared machine.
NOISE = 0.1
TIMED = 1  # rounds of timed steps between two arms
TIMEOUT_S = 900.0  # longer than any arm takes, so that one that hangs is noticed


@dataclass(frozen=True)
class Place:
    """Sizes of an engine."""

    pool_tokens: int
    host_tokens: int
    max_num_seqs: int
    max_model_len: int


class Machine:
    """This machine with one model. Plays arms one after the other."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
        self._loaded = loaded
        self._timer = fit_profile.StepTimer(loaded)

    def times(self) -> list[Any]:
        """What steps take now, see ``StepTimer.times``."""
        return self._timer.times(TIMED).tolist()

    def profile(self, times: Iterable[list[Any]], link_bytes_per_s: float) -> Profile:
        """The machine as it was over some ``times``."""
        samples = self._timer.samples(np.concatenate([np.array(one) for one in times]))
        return replace(fit_profile.fit(self.shape, samples), link_bytes_per_s=link_bytes_per_s)

    def play(self, workload: Workload, arm: Arm, place: Place) -> tuple[dict[str, Any], float]:
        """An arm's figures, and bytes a second of the link it had."""
        is_tiered = arm.cache.mode != "gpu-only"
        host_gib = place.host_tokens * self.shape.kv_bytes_per_token / GIB
        cache = replace(
            arm.cache,
            host_cache_gib=host_gib if is_tiered else None,
            link_ratio=LINK_RATIO if jax.default_backend() == "cpu" else None,
        )
        config = EngineConfig(
            max_model_len=place.max_model_len,
            max_num_seqs=place.max_num_seqs,
            max_num_batched_tokens=MAX_PREFILL,
            page_size=PAGE,
            num_pages=(workload.total if arm.is_unlimited else place.pool_tokens) // PAGE + 1,
            seed=0,
            cache=cache,
        )
        return play_on_engine(self._loaded, config, workload)

    def simulate(
        self, workload: Workload, arm: Arm, place: Place, profile: Profile
    ) -> dict[str, Any]:
        """The same in virtual time."""
        where = Setting(
            self.shape,
            profile,
            place.pool_tokens,
            place.host_tokens,
            place.max_num_seqs,
            MAX_PREFILL,
        )
        return play(where, workload, arm).figures


def play_on_engine(
    loaded: LoadedModel, config: EngineConfig, workload: Workload
) -> tuple[dict[str, Any], float]:
    """Figures of a workload on an engine of its own, and bytes a second of the link to it."""
    built = build_engine(loaded, config, progress=False)
    link_bytes_per_s = built.transfers.bytes_per_s[Direction.LOAD]
    engine = EngineThread(built)
    try:
        driver = Driver(workload, RealServer(engine))
        with counted_compiles() as compiles:
            driver.start()
            records = driver.finish(TIMEOUT_S)
        engine.check_integrity()
        played = figures(records, driver.warm_stats or EngineStats(), engine.stats)
        played["compiles"] = len(compiles)
    finally:
        engine.close()
    del engine, built
    gc.collect()  # its pool, before the next is made
    return played, link_bytes_per_s


def settings(vocab_size: int, seed: int, is_quick: bool) -> list[tuple[Workload, Place]]:
    """The cycle, the branching graph and 32 concurrent runs, scaled to this machine."""
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
    # One size of engine for all: its programs are compiled once.
    own = sizes.dynamic + sizes.output + 2 * PAGE
    place = Place(4 * sizes.fixed + own, 14 * sizes.fixed, 8, ring.longest)
    return [(ring, place), (graph, place), (many, place)]


def main(arms: list[str], options: argparse.Namespace) -> int:
    """``experiments.paper --mode real``."""
    arms = [arm for arm in arms if not ARMS[arm].is_oracle and not ARMS[arm].is_unlimited]
    use_compilation_cache(default_cache_dir())
    loaded = load_model("smollm2-135m", progress=False)
    asked = {"mode": "real", "quick": options.quick, "arms": arms, "seed": options.seed}
    store = ResultCache(options.json, asked)
    machine = Machine(loaded)
    places = settings(loaded.config.vocab_size, options.seed, options.quick)
    jobs = {f"{load.name} {arm}": (load, arm, place) for load, place in places for arm in arms}
    for key, (load, arm, place) in tqdm(jobs.items(), unit="arm", disable=not sys.stderr.isatty()):
        if key not in store:
            before = machine.times()
            real, link_bytes_per_s = machine.play(load, ARMS[arm], place)
            store.put(key, {"real": real, "link": link_bytes_per_s, "times": before})
    played: dict[str, Any] = {}
    all_times = [one["times"] for one in store.results.values()]
    for key, (load, arm, place) in jobs.items():
        one = store.results[key]
        profile = machine.profile(all_times, one["link"])
        virtual = machine.simulate(load, ARMS[arm], place, profile)
        played[key] = {"real": one["real"], "sim": virtual, "profile": profile.to_dict()}
        print(told(key, played[key]), flush=True)
    results = {**asked, "link_ratio": LINK_RATIO, "arms_played": played} | compared(played)
    print(
        f"virtual time is off by {results['worst_error']:.1%} at most; same order of arms where "
        f"they differ by more than {NOISE:.0%}:"
    )
    print("  " + ", ".join(f"{name}: {one}" for name, one in results["same_order"].items()))
    write_json(results, options.json)
    store.close()
    return 0


def told(key: str, result: Mapping[str, Any]) -> str:
    real, virtual = result["real"]["makespan_s"], result["sim"]["makespan_s"]
    return (
        f"{key:28}{real:8.1f} s real, {virtual:8.1f} s in virtual time ({virtual / real - 1:+.1%})"
    )


def compared(results: Mapping[str, Any]) -> dict[str, Any]:
    """How far off virtual time is, in times and in ratios, and whether it ranks arms as they are.

    A ratio is that of two arms of a workload, in both directions: when one comes out too fast and
    the other too slow, it is further off than either. Arms whose real times are within NOISE of
    each other may stand in either order.
    """
    errors = {
        key: one["sim"]["makespan_s"] / one["real"]["makespan_s"] - 1
        for key, one in results.items()
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
