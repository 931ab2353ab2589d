"""Sessions of real agents in virtual time, with no more than what their clients send.

    python -m experiments.zero_hints.traces --trace-file FOLDER --json FILE

Coding agents (*weka* sessions) name their sessions and subagents, and nothing else; calls of agents
as text name nothing. Hierarchical LRU and KVFlow play the same sessions in a pool and a host tier
too small for them. Hit tokens are compared for each tenth of the sessions, in the order in which
they begin, and with what the best replacement could hit (``belady``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare.arms import ARMS as NAMED_ARMS
from experiments.compare.call_hints import client_identity
from experiments.compare.run_cell import PAGE, CellResult, Setting, run_cell
from experiments.measure import arguments, positive_float, positive_int, write_json
from experiments.workloads.base import Run, Workload
from experiments.workloads.readers import TraceError, read_trace
from experiments.workloads.reduction import shortened, staggered, thinned
from experiments.zero_hints.belady import accesses, belady_hits
from kvflow_jax.config.values import number
from kvflow_jax.serve.argument_parser import argument_type
from kvflow_jax.sim import machines

MACHINE, MODEL = "h100-pcie", "llama-3.1-8b"
SESSIONS_AT_ONCE, SCALE, PAUSE_FACTOR = 64, 8, 0.125
POOL_SHARE, HOST_SHARE = 0.25, 0.25
QUICK_SESSIONS = 8
NUM_PARTS = 10  # of the sessions, that are compared one by one
ONE_KEY = "one key"  # the tenant of all sessions
HICACHE, KVFLOW = "hicache", "kvflow"
ARMS = {
    HICACHE: NAMED_ARMS["hicache"],
    KVFLOW: replace(NAMED_ARMS["kvflow-guard"], hints_of=client_identity),
}
HEADLINE = (
    *("hits_over_hicache", "worst_tenth", "belady_gap_closed"),
    *("completion_over_hicache", "latency_over_hicache"),
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--trace-file",
        type=Path,
        required=True,
        help="a trace, or a folder of weka sessions (.json) or of agents' calls (.jsonl)",
    )
    parser.add_argument(
        "--sessions-at-once",
        type=positive_int,
        default=SESSIONS_AT_ONCE,
        help=f"about as many overlap; default: {SESSIONS_AT_ONCE}",
    )
    parser.add_argument(
        "--scale",
        type=positive_int,
        default=SCALE,
        help=f"by which tokens are divided; default: {SCALE}",
    )
    parser.add_argument(
        "--pause-factor",
        type=argument_type(number(at_least=0)),
        default=PAUSE_FACTOR,
        help=f"how long a pause is, of what it was in the trace; default: {PAUSE_FACTOR}",
    )
    parser.add_argument(
        "--pool-share",
        type=positive_float,
        default=POOL_SHARE,
        help="what the pool holds of the longest prompts of the sessions at once; "
        f"default: {POOL_SHARE}",
    )
    parser.add_argument(
        "--host-share",
        type=argument_type(number(at_least=0)),
        default=HOST_SHARE,
        help=f"the same for the host tier; default: {HOST_SHARE}",
    )
    parser.add_argument(
        "--one-key", action="store_true", help="all sessions have one API key, not one each"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"the first {QUICK_SESSIONS} sessions only"
    )
    options = parser.parse_args()
    try:
        runs = read_runs(options.trace_file, options.scale, options.quick)
    except TraceError as error:
        parser.error(str(error))
    if options.one_key:
        runs = [replace(run, tenant=ONE_KEY) for run in runs]
    trace = Workload(options.trace_file.name, tuple(runs))
    workload = staggered(shortened(trace, options.pause_factor), options.sessions_at_once)
    setting = setting_of(workload, options)
    results = {name: run_cell(setting, workload, arm) for name, arm in ARMS.items()}
    figures = compared(workload, setting, results)
    print(table(figures))
    asked = {
        "sessions_at_once": options.sessions_at_once,
        "scale": options.scale,
        "pause_factor": options.pause_factor,
        "one_key": options.one_key,
        "pool_tokens": setting.pool_tokens,
        "host_tokens": setting.host_tokens,
    }
    write_json({"trace": trace.name, **asked, **figures}, options.json)
    return 0


def read_runs(path: Path, scale: int, is_quick: bool) -> list[Run]:
    """Read the sessions of a trace, or of all traces in a folder, in order of their names.

    Each has tokens of its own but for text, which is the same tokens everywhere.

    Raises:
        TraceError: a file is no trace, or the folder has none.
    """
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.json")) or sorted(path.rglob("*.jsonl"))
    if not files:
        raise TraceError(f"{path} has neither .json files nor .jsonl files")
    vocab_size = machines.shape(MODEL).vocab_size
    runs: list[Run] = []
    for seed, file in enumerate(files):
        # Thinned one by one: the full prompts of hundreds of sessions need gigabytes.
        runs += thinned(read_trace(file, vocab_size, seed).runs, scale)
        if is_quick and len(runs) >= QUICK_SESSIONS:
            return runs[:QUICK_SESSIONS]
    return runs


def setting_of(workload: Workload, options: argparse.Namespace) -> Setting:
    """Return an engine whose tiers hold shares of what the sessions at once end with."""
    mean_end = sum(max(run.prompt_lens) for run in workload.runs) / len(workload.runs)
    working_set = mean_end * min(options.sessions_at_once, len(workload.runs))
    pool_tokens = max(int(options.pool_share * working_set), workload.longest + 2 * PAGE)
    host_tokens = int(options.host_share * working_set)
    return Setting(machines.shape(MODEL), machines.machine(MACHINE), pool_tokens, host_tokens)


def compared(
    workload: Workload, setting: Setting, results: Mapping[str, CellResult]
) -> dict[str, Any]:
    """Return KVFlow's figures over those of hierarchical LRU."""
    hits = {arm: hit_tokens(workload, result) for arm, result in results.items()}
    totals = {arm: int(found.sum()) for arm, found in hits.items()}
    best = belady_tokens(workload, setting, results[HICACHE])
    gap = best - totals[HICACHE]
    parts = np.array_split(np.arange(len(workload.runs)), min(NUM_PARTS, len(workload.runs)))
    tenths = [ratio(int(hits[KVFLOW][p].sum()), int(hits[HICACHE][p].sum())) for p in parts]
    ends, latencies = (
        {arm: result.figures[key] for arm, result in results.items()}
        for key in ("completion_mean_s", "latency_mean_s")
    )
    return {
        "sessions": len(workload.runs),
        "calls": workload.num_calls,
        "prompt_tokens": sum(sum(run.prompt_lens) for run in workload.runs),
        "hit_tokens": totals | {"belady": best},
        "hits_over_hicache": ratio(totals[KVFLOW], totals[HICACHE]),
        "hits_over_hicache_by_tenth": tenths,
        "worst_tenth": min((one for one in tenths if one is not None), default=None),
        "belady_gap_closed": (totals[KVFLOW] - totals[HICACHE]) / gap if gap > 0 else None,
        "completion_mean_s": ends,
        "completion_over_hicache": ratio(ends[KVFLOW], ends[HICACHE]),
        "latency_over_hicache": ratio(latencies[KVFLOW], latencies[HICACHE]),
        "hit_tokens_by_session": {arm: found.tolist() for arm, found in hits.items()},
        "arms": {arm: result.figures for arm, result in results.items()},
    }


def hit_tokens(workload: Workload, result: CellResult) -> np.ndarray:
    """Return the prompt tokens found in the cache, i64[num_sessions]; in order of their start."""
    found = {(run.tenant, run.workflow_id): 0 for run in workload.runs}
    for record in result.records:
        found[record.tenant, record.workflow_id] += record.num_cached
    return np.array(list(found.values()))


def belady_tokens(workload: Workload, setting: Setting, result: CellResult) -> int:
    """Return the most prompt tokens that a cache could hit in the order of calls of a result."""
    runs = {(run.tenant, run.workflow_id): run for run in workload.runs}
    begun = sorted(result.records, key=lambda r: (r.start_s, r.tenant, r.workflow_id, r.number))
    calls = [(runs[r.tenant, r.workflow_id], r.number) for r in begun]
    capacity = setting.pool_tokens // PAGE + setting.host_tokens // PAGE
    return PAGE * sum(belady_hits(accesses(calls, PAGE), capacity))


def ratio(value: float, base: float) -> float | None:
    """Return a value over another; None over nothing."""
    return value / base if base else None


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as lines."""
    prompt = figures["prompt_tokens"]
    lines = [f"{figures['sessions']} sessions, {figures['calls']} calls, {prompt} prompt tokens"]
    for arm, tokens in figures["hit_tokens"].items():
        completion_s = figures["completion_mean_s"].get(arm)
        took = "" if completion_s is None else f", {completion_s:.1f} s to complete a session"
        lines.append(f"{arm:10}{tokens / prompt:8.4f} of them hit{took}")
    tenths: Sequence[float | None] = figures["hits_over_hicache_by_tenth"]
    lines.append(f"hits over hicache, by tenth: {' '.join(map(_shown, tenths))}")
    lines += [f"{name:26}{_shown(figures[name])}" for name in HEADLINE]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
