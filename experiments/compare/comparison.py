"""Compare cache configurations (arms) on a workload, in virtual time.

    python -m experiments.compare --workload mix --arms all --json FILE
    python -m experiments.compare --workload cycle --quick
    python -m experiments.compare --workload coding --policy my_package.my_module:my_order
    python -m experiments.compare --workload dag-4 --runs 1000 --rate 1 --machine 'tpu-v5e x4'

A policy is a pure function, see ``kvflow_jax.cache.policy``: it takes facts of blocks and returns
sort keys; the block of the lowest key is evicted first. All else is as in the arm ``kvflow-guard``:
KVFlow's host tier, prefetch and safeguards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.compare.arms import ARMS, Arm, arms_named, gap_closed
from experiments.compare.result_cache import ResultCache, ResultCacheError, content_version
from experiments.compare.run_cell import DoesNotFitError, Setting, run_cell
from experiments.measure import (
    THIS_MACHINE,
    command_name,
    first_line,
    interruptible,
    non_negative_int,
    positive_float,
    positive_int,
    write_json,
)
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.catalogue import WORKLOADS, catalogue_entry
from experiments.workloads.readers import TraceError, read_trace
from experiments.workloads.scale import Scale, ScaleError
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.trace import ChromeTrace
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.argument_parser import ArgumentParser
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
        arms[policy] = Arm("a custom policy", CacheConfig(mode="kvflow", eviction=policy))
    # Report an error of any workload before the first one runs.
    for name in names:
        setting, workload = resolve(name, options)
        setting.check(workload)
    asked = {key: str(value) for key, value in vars(options).items() if key != "json"}
    if options.trace_file is not None:
        asked["trace"] = content_version(options.trace_file)
    results_cache = ResultCache(options.json, asked)
    for name in names:
        figures: dict[str, dict[str, Any]] = {}
        setting, workload = resolve(name, options)
        for arm, config in tqdm(
            arms.items(), desc=name, unit="arm", disable=not sys.stderr.isatty()
        ):
            key = f"{name} {arm}"
            if key not in results_cache:
                tracer = ChromeTrace(options.trace) if options.trace is not None else None
                results_cache.put(key, run_cell(setting, workload, config, tracer).figures)
                if tracer is not None:
                    tracer.close()
            figures[arm] = results_cache.results[key]
        print(table(name, setting, figures), flush=True)
    print(LEGEND)
    write_json(nested(results_cache.results), options.json)
    results_cache.close()
    return 0


def resolve(name: str, options: argparse.Namespace) -> tuple[Setting, Workload]:
    """Return the setting and the workload of a name or trace file, as the options scale them.

    Raises:
        UnknownNameError: there is no such workload, machine or model.
        TraceError: the trace file cannot be read.
        ScaleError: the workload does not have what an option scales.
    """
    trace_file: Path | None = options.trace_file
    entry = None if trace_file is not None else catalogue_entry(name)
    machine = options.machine or ("h100-pcie" if entry is None else entry.machine)
    model = options.model or ("llama-3.1-8b" if entry is None else entry.model)
    profile, shape = (
        machines.machine(machine, {"this-machine": THIS_MACHINE}),
        machines.shape(model),
    )
    pool = options.pool_tokens or machines.pool_tokens(profile, shape)
    scale = Scale(options.quick, options.runs, options.rate, options.sizes)
    if trace_file is not None:
        workload = read_trace(trace_file, shape.vocab_size, options.seed)
    else:
        assert entry is not None
        workload = entry.build(shape.vocab_size, options.seed, scale)
    scale.check(name)
    host = 4 * pool if options.host_tokens is None else options.host_tokens
    return Setting(shape, profile, pool, host, options.max_num_seqs), workload


def table(name: str, setting: Setting, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the figures of a workload, one line for each arm."""
    width = max(14, *(len(arm) + 1 for arm in arms))
    lines = [
        f"{name}: {setting.model.name} on {setting.profile.name}, {setting.pool_tokens} tokens on "
        f"the device, {setting.host_tokens} on the host",
        f"  {'':{width}}{'speed':>7}{'runs':>7}"
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
        lines.append(f"  {arm:{width}}{speeds}{cells}{gap:>7}")
    if not any(figures["evicted_blocks"] for figures in arms.values()):
        lines.append("  Nothing was evicted: the arms differ only in the order of their calls.")
    return "\n".join(lines)


LEGEND = """speed: gpu-only's makespan over the arm's, without the first round; runs: the same ratio
of the mean completion of runs, first round included; compl p50, p99: completion of runs; times in
seconds; stall: share of the makespan; device, host, computed: prompt tokens by source; gap: time
saved against gpu-only, as a share of what the fastest arm saves, if that is 5% or more
"""


def nested(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{workload: {arm: figures}}`` of results by ``workload arm``."""
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
    """Parse ``fixed/dynamic/output`` tokens, for argparse."""
    fixed, dynamic, output = map(positive_int, text.split("/"))
    return Sizes(fixed, dynamic, output)


def _arguments() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog=command_name(),
        description=first_line(__doc__),
        epilog="workloads: " + "; ".join(f"{n}: {e.about}" for n, e in WORKLOADS.items()),
    )
    parser.add_argument("--workload", default="cycle", help="names, comma-separated, or all")
    parser.add_argument(
        "--trace-file",
        type=Path,
        help="a trace instead: Mooncake, AIPerf, calls of agents; weka sessions, also a folder",
    )
    parser.add_argument("--arms", default="all", help="names, comma-separated, or all")
    parser.add_argument(
        "--policy",
        metavar="MODULE:FUNCTION",
        action="append",
        default=[],
        help="an eviction policy, as one more arm; may be repeated",
    )
    parser.add_argument(
        "--machine", help=f"{', '.join(machines.MACHINES)} [xN], this-machine, FILE"
    )
    parser.add_argument("--model", help=", ".join(machines.SHAPES))
    parser.add_argument("--runs", type=positive_int, help="number of runs, if the workload has any")
    parser.add_argument("--rate", type=positive_float, help="Poisson arrivals, runs/s")
    parser.add_argument(
        "--sizes", type=prompt_sizes, metavar="F/D/O", help="tokens: fixed prefix, suffix, output"
    )
    parser.add_argument("--pool-tokens", type=positive_int, help="device pool; default: what fits")
    parser.add_argument(
        "--host-tokens", type=non_negative_int, help="host tier; default: 4 x the device pool"
    )
    parser.add_argument("--max-num-seqs", type=positive_int, default=64, help="calls at once")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all random draws")
    parser.add_argument("--quick", action="store_true", help="smaller workloads")
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of the last arm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
