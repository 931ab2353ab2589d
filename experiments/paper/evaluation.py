"""KVFlow's evaluation (arXiv 2507.07400, version 1 and the camera-ready), cell by cell.

    python -m experiments.paper --mode sim --quick --json FILE
    python -m experiments.paper --mode real --quick

In virtual time the paper's machines and models, as ``kvflow_jax.sim.machines`` has them. On real
execution the same workloads scaled down, on this machine and the embedded model, the link emulated
at the A10G's ratio; and the same in virtual time beside it, with a profile fitted to how long steps
took meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from experiments.compare.arms import ARMS, arms_named
from experiments.compare.result_cache import ResultCache, ResultCacheError
from experiments.compare.run_cell import Setting, run_cell
from experiments.measure import arguments, interruptible, positive_int, non_negative_int, write_json
from experiments.workloads import paper
from experiments.workloads.base import Sizes, Workload
from kvflow_jax.sim import machines
from kvflow_jax.sim.profile import ModelShape, Profile

SINGLE_SEQS = 4  # one call at a time, or the branches of a stage
DYNAMIC_OUTPUT = ((32, 32), (32, 128), (256, 32), (256, 128), (1024, 128), (32, 512))
FIXED = (1024, 2048, 4096, 8192)
MEANS_OF = ("kvflow", "hicache")


Job = tuple[str, list[str], int]  # a cell's name, arms, seed


@dataclass(frozen=True)
class Cell:
    """One setting of one experiment.

    Attributes:
        reported: (faster arm, slower arm) -> how many times as fast the paper says it is.
    """

    name: str
    setting: Setting
    workload: Callable[[int, int], Workload]  # (vocab_size, seed)
    reported: Mapping[tuple[str, str], float] = field(default_factory=dict)
    is_quick: bool = False


# What is reported of many cells at once: a mean over all sizes with this fixed prefix, or a most.
REPORTED_MEANS = {
    ("v1", 8192): 1.48,
    ("v1", 4096): 1.28,
    ("camera-ready", 8192): 1.30,
    ("camera-ready", 4096): 1.22,
}


def setting(profile: Profile, model: ModelShape, max_num_seqs: int) -> Setting:
    pool = machines.pool_tokens(profile, model)
    return Setting(model, profile, pool, host_tokens=1 << 20, max_num_seqs=max_num_seqs)


def cells() -> list[Cell]:
    return [*_version_1(), *_camera_ready(), *_concurrency(), *_peer()]


def _version_1() -> list[Cell]:
    found = []
    for profile in (machines.A10G, machines.A10G_EFFECTIVE):
        where = setting(profile, machines.LLAMA_3_1_8B, SINGLE_SEQS)
        for sizes in _grid():
            reported = {}
            if (sizes.fixed, sizes.dynamic, sizes.output) == (8192, 32, 32):
                reported = {("kvflow", "hicache"): 1.83, ("kvflow", "gpu-only"): 2.91}
            is_short = (sizes.dynamic, sizes.output) == (32, 32)
            found.append(
                Cell(
                    f"v1 {profile.name} {sizes}",
                    where,
                    _cycle(sizes),
                    reported,
                    is_quick=sizes.fixed >= 4096 and is_short,
                )
            )
    return found


def _camera_ready() -> list[Cell]:
    found = []
    for profile in (machines.H100_PCIE, machines.H100_EFFECTIVE):
        where = setting(profile, machines.QWEN2_5_32B, SINGLE_SEQS)
        for num_branches in (1, 2):
            for sizes in _grid():
                reported = {}
                is_shown = (sizes.fixed, sizes.dynamic, sizes.output) == (4096, 32, 32)
                if is_shown and num_branches == 1:
                    reported = {
                        ("kvflow", "hicache"): 1.24,
                        ("kvflow", "gpu-only"): 1.42,
                        ("kvflow-evict", "hicache"): 1.11,
                    }
                found.append(
                    Cell(
                        f"camera-ready {profile.name} x{num_branches} {sizes}",
                        where,
                        _stages(num_branches, sizes),
                        reported,
                        is_quick=is_shown,
                    )
                )
    return found


def _concurrency() -> list[Cell]:
    found = []
    for profile in (machines.H100_PCIE, machines.H100_EFFECTIVE):
        where = setting(profile, machines.QWEN2_5_32B, 64)
        for fixed in (512, 1024):
            for num_runs in (16, 64):
                reported = {}
                if (fixed, num_runs) == (1024, 64):
                    reported = {("hicache", "gpu-only"): 0.57, ("kvflow", "hicache"): 2.19}
                found.append(
                    Cell(
                        f"concurrent {profile.name} {fixed}/256/256 x{num_runs}",
                        where,
                        _concurrent(num_runs, Sizes(fixed, 256, 256)),
                        reported,
                        is_quick=bool(reported) and profile is machines.H100_EFFECTIVE,
                    )
                )
    return found


def _peer() -> list[Cell]:
    where = setting(machines.H100_PCIE, machines.QWEN2_5_32B, 64)
    return [
        Cell(
            "peer h100-pcie",
            where,
            lambda vocab_size, seed: paper.peer(
                num_runs=32, num_rounds=3, vocab_size=vocab_size, seed=seed
            ),
            {("kvflow", "gpu-only"): 1.12, ("kvflow", "hicache"): 1.08},
            is_quick=True,
        )
    ]


def _grid() -> list[Sizes]:
    return [Sizes(fixed, *rest) for fixed in FIXED for rest in DYNAMIC_OUTPUT]


def _cycle(sizes: Sizes) -> Callable[[int, int], Workload]:
    return lambda vocab_size, seed: paper.cycle(
        num_agents=10, num_rounds=10, sizes=sizes, vocab_size=vocab_size, seed=seed
    )


def _stages(num_branches: int, sizes: Sizes) -> Callable[[int, int], Workload]:
    return lambda vocab_size, seed: paper.stages(
        num_branches=num_branches, num_rounds=10, sizes=sizes, vocab_size=vocab_size, seed=seed
    )


def _concurrent(num_runs: int, sizes: Sizes) -> Callable[[int, int], Workload]:
    return lambda vocab_size, seed: paper.concurrent(
        num_runs=num_runs,
        num_agents=4,
        num_rounds=2,
        sizes=sizes,
        vocab_size=vocab_size,
        seed=seed,
    )


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--mode", choices=["sim", "real"], default="sim", help="virtual time, or this machine"
    )
    parser.add_argument("--quick", action="store_true", help="a few cells of each experiment")
    parser.add_argument(
        "--arms",
        default="some",
        help="names, comma-separated, all, or some: all for the quick cells, without oracle and "
        "unlimited for the others",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all that is drawn")
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count(), help="cells at a time")
    options = parser.parse_args()
    try:
        return interruptible(lambda: run(options))
    except (machines.UnknownNameError, ResultCacheError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    arms = arms_named("all" if options.arms == "some" else options.arms)
    if options.mode == "real":
        from experiments.paper import real

        return real.main(arms, options)
    asked = {"quick": options.quick, "arms": arms, "seed": options.seed}
    store = ResultCache(options.json, asked)
    wanted = [cell for cell in cells() if cell.is_quick or not options.quick]
    jobs = [
        (cell.name, arms_of(cell, arms, options.arms == "some"), options.seed)
        for cell in wanted
        if cell.name not in store
    ]
    by_name = {cell.name: cell for cell in wanted}
    with tqdm(total=len(wanted), unit="cell", disable=not sys.stderr.isatty()) as bar:
        for name, result in chain(list(store.results.items()), played(jobs, options.jobs)):
            if name not in store:
                store.put(name, result)
            bar.update()
            for line in told(by_name[name], store.results[name]):
                bar.write(line)
    # As they are listed, not as they came.
    ordered = {cell.name: store.results[cell.name] for cell in wanted}
    results = {"cells": ordered, "means": means(ordered), **asked}
    for line in means_told(results["means"]):
        print(line)
    write_json(results, options.json)
    store.close()
    return 0


def arms_of(cell: Cell, arms: list[str], is_some: bool) -> list[str]:
    """Without those that take longest, where they are not asked for and the cell is not short."""
    if not is_some or cell.is_quick:
        return arms
    return [arm for arm in arms if arm not in ("oracle", "unlimited")]


def played(jobs: list[Job], num_at_once: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each job's cell and what comes of it, as they end."""
    if num_at_once <= 1 or len(jobs) <= 1:
        yield from map(_play_job, jobs)
        return
    # Not forked: JAX has threads of its own. Who stops this one ends them with it.
    with get_context("spawn").Pool(num_at_once, _ignore_interrupts) as pool:
        yield from pool.imap_unordered(_play_job, jobs)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _play_job(job: Job) -> tuple[str, dict[str, Any]]:
    name, arms, seed = job
    return name, play_cell(next(cell for cell in cells() if cell.name == name), arms, seed)


def play_cell(cell: Cell, arms: list[str], seed: int) -> dict[str, Any]:
    """Every arm's figures, and the paper's beside ours."""
    workload = cell.workload(cell.setting.model.vocab_size, seed)
    if workload.longest + 16 > cell.setting.pool_tokens:
        return {"does_not_fit": workload.longest, "pool_tokens": cell.setting.pool_tokens}
    played = {arm: run_cell(cell.setting, workload, ARMS[arm]).figures for arm in arms}
    compared = {
        f"{fast} over {slow}": {"reported": reported, "ours": speedup(played, fast, slow)}
        for (fast, slow), reported in cell.reported.items()
        if fast in played and slow in played
    }
    return {"pool_tokens": cell.setting.pool_tokens, "arms": played, "paper": compared}


def speedup(arms: Mapping[str, Mapping[str, Any]], fast: str, slow: str) -> float:
    return float(arms[slow]["makespan_s"] / arms[fast]["makespan_s"])


def told(cell: Cell, result: Mapping[str, Any]) -> list[str]:
    if "arms" not in result:
        return [f"{cell.name:44} {result['does_not_fit']} tokens do not fit"]
    arms = result["arms"]
    line = f"{cell.name:44}"
    if "gpu-only" in arms:
        speeds = (f"{arm} {speedup(arms, arm, 'gpu-only'):.2f}x" for arm in arms)
        line += "  ".join(speeds)
    lines = [line]
    for name, both in result["paper"].items():
        off = both["ours"] / both["reported"] - 1
        lines.append(
            f"{'':46}{name}: {both['ours']:.2f}x, the paper {both['reported']:.2f}x ({off:+.0%})"
        )
    return lines


def means(results: Mapping[str, Any]) -> dict[str, Any]:
    """KVFlow over HiCache, mean over all sizes with the same fixed prefix; none of some of them."""
    fast, slow = MEANS_OF
    found: dict[str, list[float]] = {}
    num_seen = Counter[str | None]()
    num_cells = Counter(_mean_of(cell.name) for cell in cells())
    for name, result in results.items():
        arms = result.get("arms", {})
        key = _mean_of(name)
        num_seen[key] += 1
        if key is not None and fast in arms and slow in arms:
            found.setdefault(key, []).append(speedup(arms, fast, slow))
    means: dict[str, Any] = {}
    for key, values in found.items():
        if num_seen[key] < num_cells[key]:
            continue
        kind, _, fixed = key.split()
        means[key] = {"ours": sum(values) / len(values), "cells": len(values)}
        if (reported := REPORTED_MEANS.get((kind, int(fixed)))) is not None:
            means[key]["reported"] = reported
    return means


def _mean_of(name: str) -> str | None:
    """The mean that a cell belongs to: ``kind machine fixed``."""
    kind, _, rest = name.partition(" ")
    if kind not in ("v1", "camera-ready"):
        return None
    return f"{kind} {rest.split()[0]} {rest.split()[-1].split('/')[0]}"


def means_told(means: Mapping[str, Any]) -> list[str]:
    if not means:
        return []
    lines = ["", "kvflow over hicache, mean over sizes with the same fixed prefix:"]
    for key, both in means.items():
        paper_says = f", the paper {both['reported']:.2f}x" if "reported" in both else ""
        lines.append(f"  {key:34}{both['ours']:.2f}x of {both['cells']} cells{paper_says}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
