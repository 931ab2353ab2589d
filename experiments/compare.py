"""Arms side by side on a workload, in virtual time.

    python -m experiments.compare --workload mix --arms all --json FILE
    python -m experiments.compare --workload coding --policy my_package.my_module:my_order

A policy is a pure function, see ``kvflow_jax.cache.policy``: it is given facts of blocks and
returns keys, the lowest of which goes first. It is played with KVFlow's host tier and prefetch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.arms import ARMS, Arm, arms_named, gap_closed
from experiments.measure import write_json
from experiments.play import DoesNotFitError, Setting, play
from experiments.sim import machines
from experiments.store import Store
from experiments.workloads.catalogue import WORKLOADS, workload
from experiments.workloads.readers import TraceError, read_trace
from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.cache_settings import CacheConfig
from kvflow_jax.trace import ChromeTrace

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
        return run(options)
    except (machines.UnknownNameError, DoesNotFitError, TraceError, PolicyError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    names = list(WORKLOADS) if options.workload == "all" else options.workload.split(",")
    if options.trace_file is not None:
        names = [str(options.trace_file)]
    arms = {name: ARMS[name] for name in arms_named(options.arms)}
    if options.policy is not None:
        arms[options.policy] = policy_arm(options.policy)
    asked = {key: str(value) for key, value in vars(options).items() if key != "json"}
    store = Store(options.json, asked)
    for name in names:
        played: dict[str, dict[str, Any]] = {}
        setting, load = place(name, options)
        setting.check(load)
        for arm, how in tqdm(arms.items(), desc=name, unit="arm", disable=not sys.stderr.isatty()):
            key = f"{name} {arm}"
            if key not in store:
                tracer = ChromeTrace(options.trace) if options.trace is not None else None
                store.put(key, play(setting, load, how, tracer).figures)
                if tracer is not None:
                    tracer.close()
            played[arm] = store.results[key]
        print(table(name, setting, played), flush=True)
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
    profile, shape = machines.machine(machine), machines.shape(model)
    pool = options.pool_tokens or machines.pool_tokens(profile, shape)
    if options.trace_file is not None:
        load = read_trace(options.trace_file, shape.vocab_size, options.seed)
    else:
        load = entry.build(shape.vocab_size, options.seed, options.quick)
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
    POLICIES[where] = order
    return Arm("a policy of yours", CacheConfig(mode="kvflow", eviction=where))


def table(name: str, setting: Setting, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each arm."""
    lines = [
        f"{name}: {setting.model.name} on {setting.profile.name}, {setting.pool_tokens} tokens on "
        f"the device, {setting.host_tokens} on the host",
        f"  {'':14}{'speed':>7}"
        + "".join(f"{title:>11}" for _, title, _ in COLUMNS)
        + f"{'gap':>7}",
    ]
    base = arms.get("gpu-only")
    for arm, figures in arms.items():
        speed = f"{base['makespan_s'] / figures['makespan_s']:.2f}x" if base else ""
        closed = gap_closed(arms, arm, "makespan_s")
        cells = "".join(f"{figures[key]:>11{form}}" for key, _, form in COLUMNS)
        gap = "" if closed is None else f"{closed:.0%}"
        lines.append(f"  {arm:14}{speed:>7}{cells}{gap:>7}")
    return "\n".join(lines)


def nested(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{workload: {arm: figures}}`` from names of both."""
    tree: dict[str, Any] = {}
    for key, figures in results.items():
        name, arm = key.rsplit(" ", 1)
        tree.setdefault(name, {})[arm] = figures
    for arms in tree.values():
        for arm, figures in arms.items():
            if (closed := gap_closed(arms, arm, "makespan_s")) is not None:
                figures["gap_closed"] = closed
    return tree


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Arms side by side on a workload, in virtual time.",
        epilog="workloads: " + "; ".join(f"{n}: {e.about}" for n, e in WORKLOADS.items()),
    )
    parser.add_argument("--workload", default="cycle", help="names, comma-separated, or all")
    parser.add_argument("--trace-file", type=Path, help="a trace to play instead: Mooncake, AIPerf")
    parser.add_argument("--arms", default="all", help="names, comma-separated, or all")
    parser.add_argument("--policy", metavar="MODULE:FUNCTION", help="a policy of yours, as an arm")
    parser.add_argument(
        "--machine", help=f"{', '.join(machines.MACHINES)} [xN], this-machine, FILE"
    )
    parser.add_argument("--model", help=", ".join(machines.SHAPES))
    parser.add_argument("--pool-tokens", type=int, help="on the device; default: what fits")
    parser.add_argument("--host-tokens", type=int, help="default: four times the device's")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="smaller workloads")
    parser.add_argument("--trace", type=Path, help="a Chrome trace of the last arm")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
