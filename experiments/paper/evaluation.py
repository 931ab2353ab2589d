"""Reproduce KVFlow's evaluation (arXiv 2507.07400, version 1 and the camera-ready).

    python -m experiments.paper --mode sim --quick --json FILE
    python -m experiments.paper --mode real --quick

``--mode sim`` runs the paper's cells in virtual time, on the machines and models of
``kvflow_jax.sim.machines``. ``--mode real`` runs scaled-down workloads on this machine with
``--model``, its host link emulated at the A10G's ratio, and simulates the same with a profile
fitted to this machine's step times.
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
from experiments.measure import arguments, interruptible, non_negative_int, positive_int, write_json
from experiments.workloads import paper
from experiments.workloads.base import Sizes, Workload
from kvflow_jax.sim import machines
from kvflow_jax.sim.profile import ModelShape, Profile

SINGLE_SEQS = 4  # room for one call, or for the branches of a stage
DYNAMIC_OUTPUT = ((32, 32), (32, 128), (256, 32), (256, 128), (1024, 128), (32, 512))
FIXED = (1024, 2048, 4096, 8192)
MEANS_OF = ("kvflow", "hicache")


Job = tuple[str, list[str], int]  # a cell's name, arms, seed


@dataclass(frozen=True)
class Cell:
    """One workload of the paper's evaluation, in one setting.

    Attributes:
        reported: (faster arm, slower arm) -> the speedup that the paper reports.
        is_quick: True if ``--quick`` includes the cell.
    """

    name: str
    setting: Setting
    workload: Callable[[int, int], Workload]  # (vocab_size, seed)
    reported: Mapping[tuple[str, str], float] = field(default_factory=dict)
    is_quick: bool = False


# (version of the paper, fixed tokens) -> the mean speedup that it reports over all sizes.
REPORTED_MEANS = {
    ("v1", 8192): 1.48,
    ("v1", 4096): 1.28,
    ("camera-ready", 8192): 1.30,
    ("camera-ready", 4096): 1.22,
}


def paper_setting(profile: Profile, model: ModelShape, max_num_seqs: int) -> Setting:
    """Return a setting whose pool takes all device memory and whose host tier holds everything."""
    pool = machines.pool_tokens(profile, model)
    return Setting(model, profile, pool, host_tokens=1 << 20, max_num_seqs=max_num_seqs)


def cells() -> list[Cell]:
    """Return all cells of the evaluation, in order of the report."""
    return [*_version_1(), *_camera_ready(), *_concurrency(), *_peer()]


def _version_1() -> list[Cell]:
    cells = []
    for profile in (machines.A10G, machines.A10G_EFFECTIVE):
        setting = paper_setting(profile, machines.LLAMA_3_1_8B, SINGLE_SEQS)
        for sizes in _grid():
            reported = {}
            if (sizes.fixed, sizes.dynamic, sizes.output) == (8192, 32, 32):
                reported = {("kvflow", "hicache"): 1.83, ("kvflow", "gpu-only"): 2.91}
            is_short = (sizes.dynamic, sizes.output) == (32, 32)
            cells.append(
                Cell(
                    f"v1 {profile.name} {sizes}",
                    setting,
                    _cycle(sizes),
                    reported,
                    is_quick=sizes.fixed >= 4096 and is_short,
                )
            )
    return cells


def _camera_ready() -> list[Cell]:
    cells = []
    for profile in (machines.H100_PCIE, machines.H100_EFFECTIVE):
        setting = paper_setting(profile, machines.QWEN2_5_32B, SINGLE_SEQS)
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
                cells.append(
                    Cell(
                        f"camera-ready {profile.name} x{num_branches} {sizes}",
                        setting,
                        _stages(num_branches, sizes),
                        reported,
                        is_quick=is_shown,
                    )
                )
    return cells


def _concurrency() -> list[Cell]:
    cells = []
    for profile in (machines.H100_PCIE, machines.H100_EFFECTIVE):
        setting = paper_setting(profile, machines.QWEN2_5_32B, 64)
        for fixed in (512, 1024):
            for num_runs in (16, 64):
                reported = {}
                if (fixed, num_runs) == (1024, 64):
                    reported = {("hicache", "gpu-only"): 0.57, ("kvflow", "hicache"): 2.19}
                cells.append(
                    Cell(
                        f"concurrent {profile.name} {fixed}/256/256 x{num_runs}",
                        setting,
                        _concurrent(num_runs, Sizes(fixed, 256, 256)),
                        reported,
                        is_quick=bool(reported) and profile is machines.H100_EFFECTIVE,
                    )
                )
    return cells


def _peer() -> list[Cell]:
    setting = paper_setting(machines.H100_PCIE, machines.QWEN2_5_32B, 64)
    return [
        Cell(
            "peer h100-pcie",
            setting,
            lambda vocab_size, seed: paper.peer(
                num_runs=32, num_rounds=3, vocab_size=vocab_size, seed=seed
            ),
            {("kvflow", "gpu-only"): 1.12, ("kvflow", "hicache"): 1.08},
            is_quick=True,
        )
    ]


def _grid() -> list[Sizes]:
    return [Sizes(fixed, *others) for fixed in FIXED for others in DYNAMIC_OUTPUT]


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
    parser = arguments(__doc__)
    parser.add_argument(
        "--mode", choices=["sim", "real"], default="sim", help="in virtual time, or on this machine"
    )
    parser.add_argument("--quick", action="store_true", help="a few cells of each experiment")
    parser.add_argument(
        "--arms",
        default="some",
        help="names, comma-separated; all; or some: all for the quick cells, all but oracle and "
        "unlimited for the others",
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="of --mode real; default: smollm2-135m"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all random draws")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=os.cpu_count(),
        help="cells at once; default: one a CPU",
    )
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
    results_cache = ResultCache(options.json, asked)
    wanted = [cell for cell in cells() if cell.is_quick or not options.quick]
    jobs = [
        (cell.name, arms_of(cell, arms, options.arms == "some"), options.seed)
        for cell in wanted
        if cell.name not in results_cache
    ]
    by_name = {cell.name: cell for cell in wanted}
    with tqdm(total=len(wanted), unit="cell", disable=not sys.stderr.isatty()) as bar:
        for name, result in chain(
            list(results_cache.results.items()), run_jobs(jobs, options.jobs)
        ):
            if name not in results_cache:
                results_cache.put(name, result)
            bar.update()
            for line in result_lines(by_name[name], results_cache.results[name]):
                bar.write(line)
    # In the order of ``cells``, not of completion.
    ordered = {cell.name: results_cache.results[cell.name] for cell in wanted}
    results = {"cells": ordered, "means": means(ordered), **asked}
    for line in mean_lines(results["means"]):
        print(line)
    write_json(results, options.json)
    results_cache.close()
    return 0


def arms_of(cell: Cell, arms: list[str], is_some: bool) -> list[str]:
    """Return the arms of a cell: with ``--arms some``, a long cell omits the slowest two."""
    if not is_some or cell.is_quick:
        return arms
    return [arm for arm in arms if arm not in ("oracle", "unlimited")]


def run_jobs(jobs: list[Job], num_at_once: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the result of each job's cell, in order of completion."""
    if num_at_once <= 1 or len(jobs) <= 1:
        yield from map(_run_job, jobs)
        return
    # Spawned, as forking is unsafe with JAX's threads. Workers ignore Ctrl-C and end with the pool.
    with get_context("spawn").Pool(num_at_once, _ignore_interrupts) as pool:
        yield from pool.imap_unordered(_run_job, jobs)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_job(job: Job) -> tuple[str, dict[str, Any]]:
    name, arms, seed = job
    return name, run_paper_cell(next(cell for cell in cells() if cell.name == name), arms, seed)


def run_paper_cell(cell: Cell, arms: list[str], seed: int) -> dict[str, Any]:
    """Return every arm's figures, and the paper's speedups beside ours."""
    workload = cell.workload(cell.setting.model.vocab_size, seed)
    if workload.longest + 16 > cell.setting.pool_tokens:
        return {"does_not_fit": workload.longest, "pool_tokens": cell.setting.pool_tokens}
    by_arm = {arm: run_cell(cell.setting, workload, ARMS[arm]).figures for arm in arms}
    compared = {
        f"{fast} over {slow}": {"reported": reported, "ours": speedup(by_arm, fast, slow)}
        for (fast, slow), reported in cell.reported.items()
        if fast in by_arm and slow in by_arm
    }
    return {"pool_tokens": cell.setting.pool_tokens, "arms": by_arm, "paper": compared}


def speedup(arms: Mapping[str, Mapping[str, Any]], fast: str, slow: str) -> float:
    """Return the makespan of the slow arm over that of the fast one."""
    return float(arms[slow]["makespan_s"] / arms[fast]["makespan_s"])


def result_lines(cell: Cell, result: Mapping[str, Any]) -> list[str]:
    """Format the speedups of a cell, and the paper's."""
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
    """Return mean speedups of kvflow over hicache, of each fixed prefix whose cells all ran."""
    fast, slow = MEANS_OF
    speedups: dict[str, list[float]] = {}
    num_seen = Counter[str | None]()
    num_cells = Counter(_mean_of(cell.name) for cell in cells())
    for name, result in results.items():
        arms = result.get("arms", {})
        key = _mean_of(name)
        num_seen[key] += 1
        if key is not None and fast in arms and slow in arms:
            speedups.setdefault(key, []).append(speedup(arms, fast, slow))
    means: dict[str, Any] = {}
    for key, values in speedups.items():
        if num_seen[key] < num_cells[key]:
            continue
        kind, _, fixed = key.split()
        means[key] = {"ours": sum(values) / len(values), "cells": len(values)}
        if (reported := REPORTED_MEANS.get((kind, int(fixed)))) is not None:
            means[key]["reported"] = reported
    return means


def _mean_of(name: str) -> str | None:
    """Return the mean that a cell belongs to, ``kind machine fixed``, if any."""
    kind, _, rest = name.partition(" ")
    if kind not in ("v1", "camera-ready"):
        return None
    return f"{kind} {rest.split()[0]} {rest.split()[-1].split('/')[0]}"


def mean_lines(means: Mapping[str, Any]) -> list[str]:
    """Format the mean speedups, and the paper's."""
    if not means:
        return []
    lines = ["", "kvflow over hicache, mean over sizes with the same fixed prefix:"]
    for key, both in means.items():
        reported = f", the paper {both['reported']:.2f}x" if "reported" in both else ""
        lines.append(f"  {key:34}{both['ours']:.2f}x of {both['cells']} cells{reported}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
