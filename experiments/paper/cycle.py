"""The paper's cycle of ten agents on this machine and in virtual time: gpu-only, hicache, kvflow.

    python -m experiments.cycle --json experiments/results/cycle_cpu.json
    python -m experiments.cycle --quick     # tiny random model, short prompts: under a minute

The pool holds four of the ten fixed prefixes and room for one call. Host and device memory of a CPU
are one, so the host link is emulated: loading a token takes as large a share of the time to compute
it as in the paper's setting (arXiv 2507.07400 v1), Llama-3.1-8B in bfloat16 on an A10G over 2 GB/s:

    131,072 bytes / 2 GB/s = 65.5 us  over  13.96 GFLOP / (0.6 * 70 TFLOP/s) = 332 us  =  0.197

The same arms then run in virtual time, with a profile fitted to step times of this machine before,
between and after the arms (``experiments.bench.fit_profile``), and so does the paper's own setting
with assumed rates of an A10G. On this machine the model is in float32, whatever the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from experiments.compare.arms import ARMS, PAPER_ARMS, speedups
from experiments.compare.run_cell import PAGE, Setting, run_cell
from experiments.make_folder import temporary_folder
from experiments.measure import THIS_MACHINE, arguments, positive_int, report
from experiments.paper.real import LINK_RATIO, EngineSetting, Machine
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.paper import cycle
from kvflow_jax.api.launch import use_compilation_cache
from kvflow_jax.engine.sizes import GIB
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, SMOLLM2_135M
from kvflow_jax.sim.profile import ModelShape, Profile

NUM_AGENTS, NUM_RESIDENT = 10, 4
MAX_NUM_SEQS = 4
HOST_BYTES = int(0.75 * GIB)  # on this machine

REACH = {
    "kvflow.fixed_recomputed_max": f"<= {PAGE - 1}",
    "kvflow.stall_share": "< 0.05",
    "hicache.stall_share": "well above kvflow's",
    "compiles": "0",
    "worst_error": "<= 0.2",
    "same_order": "true",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the cycle.

    Attributes:
        sizes, paper_sizes: tokens of a call on this machine, and in the paper's setting.
        num_rounds: rounds after the first, which warms the cache.
        max_prefill: prompt tokens of a step on this machine.
        deterministic: True for few batch shapes, which compile in seconds.
    """

    sizes: Sizes
    paper_sizes: Sizes
    num_rounds: int
    max_prefill: int = 256
    deterministic: bool = False


FULL = Plan(Sizes(1024, 32, 32), Sizes(8192, 32, 32), num_rounds=2)
QUICK = Plan(Sizes(64, 16, 8), Sizes(1024, 32, 32), num_rounds=1, deterministic=True)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--mode", choices=["real", "sim", "both"], default="both", help="where the arms run"
    )
    parser.add_argument("--rounds", type=positive_int, help="after the first; default: 2, quick 1")
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, short prompts"
    )
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = replace(plan, num_rounds=options.rounds)
    results: dict[str, Any] = {"link_ratio": LINK_RATIO, "rounds": plan.num_rounds}
    if options.mode == "sim":
        profile = Profile.read(THIS_MACHINE)
        results |= simulated(SMOLLM2_135M, dict.fromkeys(PAPER_ARMS, profile), plan)
    else:
        use_compilation_cache(default_cache_dir())
        with _model(options) as model:
            loaded = load_model(model, dtype="float32", progress=False)
        shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
        profiles, measured = real(loaded, shape, plan)
        results |= measured
        if options.mode == "both":
            results["profiles"] = {name: profile.to_dict() for name, profile in profiles.items()}
            results |= simulated(shape, profiles, plan)
            results |= simulation_errors(results["real"], results["sim"])
    report(*flat(results), options.json)
    return 0


@contextmanager
def _model(options: argparse.Namespace) -> Iterator[str]:
    """Yield the name or folder of the model to load."""
    if options.model is None and options.quick:
        with temporary_folder() as folder:
            yield str(folder)
    else:
        yield options.model or "smollm2-135m"


def real(
    loaded: LoadedModel, shape: ModelShape, plan: Plan
) -> tuple[dict[str, Profile], dict[str, Any]]:
    """Run the arms on this machine, one after the other; return a profile of each, and figures.

    The profiles differ in the link alone: their rates are fitted to the step times before, between
    and after all arms.
    """
    workload = _workload(plan.sizes, plan.num_rounds, shape.vocab_size)
    setting = EngineSetting(
        _pool_tokens(plan.sizes),
        HOST_BYTES // shape.kv_bytes_per_token,
        MAX_NUM_SEQS,
        workload.longest,
        plan.deterministic,
    )
    machine = Machine(loaded)
    arms: dict[str, dict[str, Any]] = {}
    links: dict[str, float] = {}
    times = [machine.times()]
    for name in PAPER_ARMS:
        arms[name], links[name] = machine.run(workload, ARMS[name], setting)
        times.append(machine.times())
        print(f"real {name}: {arms[name]['makespan_s']:.1f} s", flush=True)
    profiles = {name: machine.profile(times, link) for name, link in links.items()}
    return profiles, {"real": arms, "real_speedup": speedups(arms)}


def simulated(shape: ModelShape, profiles: Mapping[str, Profile], plan: Plan) -> dict[str, Any]:
    """Run the same arms in virtual time, and the paper's setting."""
    arms = run_arms(
        _workload(plan.sizes, plan.num_rounds, shape.vocab_size),
        {
            name: Setting(
                shape,
                profiles[name],
                _pool_tokens(plan.sizes),
                HOST_BYTES // shape.kv_bytes_per_token,
                MAX_NUM_SEQS,
                plan.max_prefill,
            )
            for name in PAPER_ARMS
        },
    )
    paper = run_arms(
        _workload(plan.paper_sizes, plan.num_rounds, LLAMA_3_1_8B.vocab_size),
        dict.fromkeys(
            PAPER_ARMS,
            Setting(
                LLAMA_3_1_8B,
                A10G,
                _pool_tokens(plan.paper_sizes),
                # Room for all prefixes, and for suffixes.
                (NUM_AGENTS + NUM_RESIDENT) * plan.paper_sizes.fixed,
                MAX_NUM_SEQS,
                2048,
            ),
        ),
    )
    return {
        "sim": arms,
        "sim_speedup": speedups(arms),
        "a10g": paper,
        "a10g_speedup": speedups(paper),
        "a10g_kvflow_over_hicache": paper["hicache"]["makespan_s"] / paper["kvflow"]["makespan_s"],
    }


def run_arms(workload: Workload, settings: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
    """Return every arm's figures in virtual time, each in its own setting."""
    return {
        name: run_cell(setting, workload, ARMS[name]).figures for name, setting in settings.items()
    }


def simulation_errors(
    measured: Mapping[str, Mapping[str, Any]], simulated: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the relative errors of virtual time, and whether it ranks the arms alike."""
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
        "worst_error": max(abs(error["makespan_s"]) for error in errors.values()),
        "same_order": order(measured) == order(simulated),
    }


def flat(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return one entry a figure, ``where.arm.figure``, and the goals of those that have one."""
    lines: dict[str, Any] = {}
    for key, value in results.items():
        if key in ("real", "sim", "a10g"):
            for arm, values in value.items():
                lines |= {f"{key}.{arm}.{name}": figure for name, figure in values.items()}
        else:
            lines[key] = value
    reach = {line: text for line in lines for goal, text in REACH.items() if line.endswith(goal)}
    return lines, reach


def _pool_tokens(sizes: Sizes) -> int:
    """Return room for NUM_RESIDENT prefixes and for what one call adds to its own."""
    own = -(-(sizes.dynamic + sizes.output) // PAGE) * PAGE
    return NUM_RESIDENT * sizes.fixed + own + PAGE


def _workload(sizes: Sizes, num_rounds: int, vocab_size: int) -> Workload:
    return cycle(num_agents=NUM_AGENTS, num_rounds=num_rounds, sizes=sizes, vocab_size=vocab_size)


if __name__ == "__main__":
    raise SystemExit(main())
