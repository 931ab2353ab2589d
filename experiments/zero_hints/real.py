"""Sessions of coding agents in real time on a tiny model, beside the same in virtual time.

    python -m experiments.zero_hints.real --trace-file FOLDER --json FILE

Plain hierarchical LRU, KVFlow with hints, and KVFlow without any, on the real engine; then the same
with a profile that is fitted to the times of this machine's steps. The model has random weights and
a context of 40k tokens, and pauses are shortened, so that it takes minutes. The pool and the host
tier hold a part of the sessions each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.bench.fit_profile import StepTimer
from experiments.compare.arms import ARMS as NAMED_ARMS
from experiments.compare.arms import Arm
from experiments.compare.call_hints import nothing
from experiments.compare.run_cell import PAGE
from experiments.make_folder import write_folder
from experiments.measure import arguments, write_json
from experiments.paper.real import LINK_RATIO, NOISE, EngineSetting, Machine
from experiments.workloads.base import Workload
from experiments.workloads.readers import TraceError, read_trace
from experiments.workloads.reduction import shortened
from kvflow_jax.api.launch import use_compilation_cache
from kvflow_jax.config.values import number
from kvflow_jax.models.families.base import TINY_LLAMA
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.serve.argument_parser import argument_type

CONTEXT, QUICK_CONTEXT = 40_960, 4096  # tokens of the longest request
VOCAB_SIZE = 300
PAUSE_FACTOR = 0.02
RESIDENT_SHARE = 1 / 3  # of what the sessions end with, in either tier
MAX_NUM_SEQS = 4
TOKEN_NOISE = 0.02  # real runs differ by this share of the tokens, as calls end in another order
# With hints and without, the configuration is that of a server's defaults.
KVFLOW = NAMED_ARMS["kvflow-guard"]
ARMS: dict[str, Arm] = {
    "hicache": NAMED_ARMS["hicache"],
    "kvflow-hints": KVFLOW,
    "kvflow-no-hints": replace(KVFLOW, hints_of=nothing),
}
# Figures whose order of arms is compared, with the share by which arms must differ.
COMPARED = {"tokens_recomputed": TOKEN_NOISE, "completion_mean_s": NOISE}
# (tokens, context) of the chunks and (rows, context) of the decode steps that are timed.
PREFILLS = ((32, 0), (64, 8192), (256, 0), (256, 4096), (256, 12_288), (256, 24_576))
DECODES = ((1, 32), (1, 8192), (1, 24_576), (4, 32), (4, 8192), (4, 24_576))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--trace-file", type=Path, required=True, help="a trace, or a folder of weka sessions"
    )
    parser.add_argument(
        "--pause-factor",
        type=argument_type(number(at_least=0)),
        default=PAUSE_FACTOR,
        help=f"how long a pause is, of what it was in the trace; default: {PAUSE_FACTOR}",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the tokens; default: 0")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: short prompts, one layer"
    )
    options = parser.parse_args()
    use_compilation_cache(default_cache_dir())
    context = QUICK_CONTEXT if options.quick else CONTEXT
    try:
        trace = read_trace(options.trace_file, VOCAB_SIZE, options.seed)
    except TraceError as error:
        parser.error(str(error))
    if trace.longest >= context:
        parser.error(f"{options.trace_file}: {trace.longest} tokens are more than {context}")
    workload = shortened(trace, options.pause_factor)
    setting = engine_setting(workload, is_quick=options.quick)
    with _model(context, num_layers=1 if options.quick else 2) as folder:
        loaded = load_model(str(folder), dtype="float32", progress=False)
    machine = Machine(loaded, None if options.quick else StepTimer(loaded, PREFILLS, DECODES))
    played = play(machine, workload, setting)
    results = {
        "trace": options.trace_file.name,
        "calls": workload.num_calls,
        "pause_factor": options.pause_factor,
        "pool_tokens": setting.pool_tokens,
        "host_tokens": setting.host_tokens,
        "link_ratio": LINK_RATIO,
        "arms_played": played,
        "order_tolerance": COMPARED,
        "same_order": same_order(played),
    }
    print("same order of arms in virtual time: ", end="")
    print(", ".join(f"{figure}: {same}" for figure, same in results["same_order"].items()))
    write_json(results, options.json)
    return 0


def engine_setting(workload: Workload, *, is_quick: bool) -> EngineSetting:
    """Return the capacity of an engine whose tiers hold a part of the sessions each."""
    ends = sum(max(run.prompt_lens) for run in workload.runs)
    pool_tokens = max(int(RESIDENT_SHARE * ends), workload.longest + 2 * PAGE)
    return EngineSetting(pool_tokens, pool_tokens, MAX_NUM_SEQS, workload.longest, is_quick)


def play(machine: Machine, workload: Workload, setting: EngineSetting) -> dict[str, Any]:
    """Play all arms in real time, then in virtual time with one profile of the machine.

    Returns:
        By arm: ``real`` and ``sim``, its figures, and ``profile``.
    """
    times, real, links = [machine.times()], {}, {}
    for name, arm in ARMS.items():
        real[name], links[name] = machine.run(workload, arm, setting)
        times.append(machine.times())
    played: dict[str, Any] = {}
    for name, arm in ARMS.items():
        profile = machine.profile(times, links[name])
        sim = machine.simulate(workload, arm, setting, profile)
        played[name] = {"real": real[name], "sim": sim, "profile": profile.to_dict()}
        for mode in ("real", "sim"):
            one = played[name][mode]
            print(
                f"{name:16}{mode:6}{one['tokens_recomputed']:9} tokens computed, "
                f"{one['completion_mean_s']:7.1f} s to complete a session",
                flush=True,
            )
    return played


def same_order(played: Mapping[str, Any]) -> dict[str, bool]:
    """Return by figure whether arms that differ in real time have the same order in virtual."""
    return {
        figure: all(
            one["sim"][figure] < other["sim"][figure]
            for one in played.values()
            for other in played.values()
            if one["real"][figure] < (1 - noise) * other["real"][figure]
        )
        for figure, noise in COMPARED.items()
    }


@contextmanager
def _model(context: int, num_layers: int) -> Iterator[Path]:
    """Write a folder of a tiny model that exists for the length of a block."""
    with tempfile.TemporaryDirectory() as name:
        hf = {
            **TINY_LLAMA,
            "vocab_size": VOCAB_SIZE,
            "num_hidden_layers": num_layers,
            "max_position_embeddings": context,
        }
        yield write_folder(Path(name) / "tiny-llama", hf)


if __name__ == "__main__":
    raise SystemExit(main())
