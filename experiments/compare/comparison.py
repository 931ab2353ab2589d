"""Arms side by side on a workload, in virtual time.

    python -m experiments.compare --workload mix --arms all --json FILE
    python -m experiments.compare --workload coding --policy my_package.my_module:my_order

    python -m experiments.compare --workload dag-4 --runs 1000 --rate 1 --machine 'tpu-v5e x4'

A policy is a pure function, see ``kvflow_jax.cache.policy``: it is given facts of blocks
(``kvflow_jax.cache.blocks``) and returns keys, the lowest of which goes first. It is played as
``kvflow-guard`` is, with KVFlow's host tier, prefetch and guard, and nothing else changed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.compare.arms import ARMS, Arm, arms_named, gap_closed
from experiments.compare.result_cache import ResultCache, ResultCacheError, content_version
from experiments.compare.run_cell import DoesNotFitError, Setting, run_cell
from experiments.measure import (
    THIS_MACHINE,
    interruptible,
    positive_int,
    positive_float,
    non_negative_int,
    write_json,
)
from experiments.workloads.base import Sizes
from experiments.workloads.catalogue import WORKLOADS, workload
from experiments.workloads.readers import TraceError, read_trace
from experiments.workloads.scale import Scale, ScaleError
from kvflow_jax.cache.blocks import BlockTable
from kvflow_jax.cache.policy import POLICIES, EvictionOrder
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.trace import ChromeTrace
from kvflow_jax.errors import ConfigError
from kvflow_jax.sim import machines

COLUMNS = (
    ("makespan_s", "makespan", ".1f"),
    ("completion_p50_s", "compl p50", ".1f"),
    ("completion_p99_s", "p99", ".1f"),
    ("ttft_mean_s", "ttft", ".3f"),
    ("stall_share", "stall", ".3f"),
    ("tokens_from_device", "device", "d"),
    ("tokens_from_host", "host", "d"),
    ("tokens_recomputed", "computed", "d"),
)


def main() -> int:
    options = _arguments().parse_args()
    try:
        return interruptible(lambda: run(options))
    except (
        machines.UnknownNameError,
        DoesNotFitError,
        TraceError,
        PolicyError,
        ScaleError,
        ResultCacheError,
        ConfigError,
    ) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    names = list(WORKLOADS) if options.workload == "all" else options.workload.split(",")
    if options.trace_file is not None:
        names = [str(options.trace_file)]
    arms = {name: ARMS[name] for name in arms_named(options.arms)}
    for policy in options.policy:
        arms[policy] = policy_arm(policy)
    for name in names:  # all are looked at before any is played
        setting, load = place(name, options)
        setting.check(load)
    asked = {key: str(value) for key, value in vars(options).items() if key != "json"}
    if options.trace_file is not None:
        asked["trace"] = content_version(options.trace_file)
    store = ResultCache(options.json, asked)
    for name in names:
        played: dict[str, dict[str, Any]] = {}
        setting, load = place(name, options)
        for arm, how in tqdm(arms.items(), desc=name, unit="arm", disable=not sys.stderr.isatty()):
            key = f"{name} {arm}"
            if key not in store:
                tracer = ChromeTrace(options.trace) if options.trace is not None else None
                store.put(key, run_cell(setting, load, how, tracer).figures)
                if tracer is not None:
                    tracer.close()
            played[arm] = store.results[key]
        print(table(name, setting, played), flush=True)
    print(LEGEND)
    write_json(nested(store.results), options.json)
    store.close()
    return 0


def place(name: str, options: argparse.Namespace) -> tuple[Setting, Any]:
    """Where a workload is played, and the workload."""
    if options.trace_file is not None:
        machine, model = options.machine or "h100-pcie", options.model or "llama-3.1-8b"
    else:
        entry = workload(name)
        machine, model = options.machine or entry.machine, options.model or entry.model
    profile, shape = (
        machines.machine(machine, {"this-machine": THIS_MACHINE}),
        machines.shape(model),
    )
    pool = options.pool_tokens or machines.pool_tokens(profile, shape)
    scale = Scale(options.quick, options.runs, options.rate, options.sizes)
    if options.trace_file is not None:
        load = read_trace(options.trace_file, shape.vocab_size, options.seed)
    else:
        load = entry.build(shape.vocab_size, options.seed, scale)
    scale.check(name)
    host = 4 * pool if options.host_tokens is None else options.host_tokens
    return Setting(shape, profile, pool, host, options.max_num_seqs), load


class PolicyError(ValueError):
    """What was named is no policy."""


def policy_arm(where: str) -> Arm:
    """An arm of a function that is named ``module:function``, known as a policy from now on."""
    module, _, function = where.partition(":")
    try:
        order = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise PolicyError(
            f"--policy wants module:function, and {where!r} is none: {error}"
        ) from None
    if not callable(order):
        raise PolicyError(f"{where!r} is no function")
    POLICIES[where] = checked(where, order)
    return Arm("a policy of yours", CacheConfig(mode="kvflow", eviction=where))


def checked(where: str, order: Callable[..., Any]) -> EvictionOrder:
    """The policy, which says so where it returns no keys. Raises PolicyError when it is called."""

    def checked_order(blocks_table: BlockTable, blocks: np.ndarray) -> np.ndarray:
        keys = np.asarray(order(blocks_table, blocks))
        is_fine = keys.ndim == 2 and len(keys) == len(blocks) and keys.dtype.kind in "biuf"
        if not is_fine or np.isnan(keys).any():
            raise PolicyError(
                f"{where} must return numbers of shape [{len(blocks)}, any], a row of keys for "
                f"each block and none of them NaN; it returned {keys.dtype}{list(keys.shape)}"
            )
        return keys

    return checked_order


def table(name: str, setting: Setting, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each arm."""
    wide = max(14, *(len(arm) + 1 for arm in arms))
    lines = [
        f"{name}: {setting.model.name} on {setting.profile.name}, {setting.pool_tokens} tokens on "
        f"the device, {setting.host_tokens} on the host",
        f"  {'':{wide}}{'speed':>7}{'runs':>7}"
        + "".join(f"{title:>11}" for _, title, _ in COLUMNS)
        + f"{'gap':>7}",
    ]
    base = arms.get("gpu-only")
    for arm, figures in arms.items():
        speeds = "".join(
            f"{base[key] / figures[key]:>6.2f}x" if base else f"{'':7}"
            for key in ("makespan_s", "completion_mean_s")
        )
        closed = gap_closed(arms, arm, "completion_mean_s")
        cells = "".join(f"{figures[key]:>11{form}}" for key, _, form in COLUMNS)
        gap = "" if closed is None else f"{closed:.0%}"
        lines.append(f"  {arm:{wide}}{speeds}{cells}{gap:>7}")
    if not any(figures["evicted_blocks"] for figures in arms.values()):
        lines.append("  Nothing was evicted: what differs here is the order in which calls came.")
    return "\n".join(lines)


LEGEND = """speed: gpu-only's makespan, without the first round, over the arm's; runs: that of the
mean completion of runs, with it; times in seconds; device, host, computed: tokens of prompts; gap:
the share closed of that between gpu-only and the oracle, in mean completion, where it is 5% or more
"""


def nested(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{workload: {arm: figures}}`` from names of both."""
    tree: dict[str, Any] = {}
    for key, figures in results.items():
        name, arm = key.rsplit(" ", 1)
        tree.setdefault(name, {})[arm] = figures
    for arms in tree.values():
        for arm, figures in arms.items():
            if (closed := gap_closed(arms, arm, "completion_mean_s")) is not None:
                figures["gap_closed"] = closed
    return tree


def prompt_sizes(text: str) -> Sizes:
    fixed, dynamic, output = map(positive_int, text.split("/"))
    return Sizes(fixed, dynamic, output)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Arms side by side on a workload, in virtual time.",
        epilog="workloads: " + "; ".join(f"{n}: {e.about}" for n, e in WORKLOADS.items()),
    )
    parser.add_argument("--workload", default="cycle", help="names, comma-separated, or all")
    parser.add_argument("--trace-file", type=Path, help="a trace to play instead: Mooncake, AIPerf")
    parser.add_argument("--arms", default="all", help="names, comma-separated, or all")
    parser.add_argument(
        "--policy",
        metavar="MODULE:FUNCTION",
        action="append",
        default=[],
        help="a policy of yours, as an arm; may be given several times",
    )
    parser.add_argument(
        "--machine", help=f"{', '.join(machines.MACHINES)} [xN], this-machine, FILE"
    )
    parser.add_argument("--model", help=", ".join(machines.SHAPES))
    parser.add_argument("--runs", type=positive_int, help="how many, where a workload has some")
    parser.add_argument("--rate", type=positive_float, help="runs a second, where they arrive")
    parser.add_argument(
        "--sizes", type=prompt_sizes, metavar="F/D/O", help="tokens: fixed prefix, new, answer"
    )
    parser.add_argument("--pool-tokens", type=positive_int, help="on the device; default: what fits")
    parser.add_argument("--host-tokens", type=non_negative_int, help="default: four times the device's")
    parser.add_argument("--max-num-seqs", type=positive_int, default=64, help="calls at a time")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all that is drawn")
    parser.add_argument("--quick", action="store_true", help="smaller workloads")
    parser.add_argument("--trace", type=Path, help="a Chrome trace of the last arm")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
