"""Ten agents in a cycle on this machine and in virtual time: gpu-only, hicache and kvflow.

    python -m experiments.cycle --json experiments/results/cycle_cpu.json

The pool holds four of the ten fixed prefixes and room for one call. The host link is emulated, on
CPU host and device memory being one: to reload a token takes as large a share of computing it as
in the paper's setting (arXiv 2507.07400 v1), Llama-3.1-8B in bfloat16 on an A10G over 2 GB/s:

    131,072 bytes / 2 GB/s = 65.5 us  over  13.96 GFLOP / (0.6 * 70 TFLOP/s) = 332 us  =  0.197

The same arms are then played in virtual time, with profiles fitted to this machine around each
(``experiments.bench.fit_profile``), and the paper's own setting with assumed rates of an A10G.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.compare.arms import ARMS, PAPER_ARMS, speedups
from experiments.compare.run_cell import PAGE, Setting, play
from experiments.measure import THIS_MACHINE, arguments, report
from experiments.paper.real import LINK_RATIO, Machine, Place
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.paper import cycle
from kvflow_jax.api.launch import use_compilation_cache
from kvflow_jax.engine.config import GIB
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, SMOLLM2_135M
from kvflow_jax.sim.profile import ModelShape, Profile

NUM_AGENTS, NUM_RESIDENT = 10, 4
SIZES = Sizes(fixed=1024, dynamic=32, output=32)
PAPER_SIZES = Sizes(fixed=8192, dynamic=32, output=32)
MAX_NUM_SEQS, MAX_PREFILL = 4, 256

REACH = {
    "kvflow.fixed_recomputed_max": f"<= {PAGE - 1}",
    "kvflow.stall_share": "< 0.05",
    "hicache.stall_share": "well above kvflow's",
    "compiles": "0",
    "worst_error": "<= 0.2",
    "same_order": "true",
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["real", "sim", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=2, help="after the one that warms")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    results: dict[str, Any] = {"link_ratio": LINK_RATIO, "rounds": options.rounds}
    if options.mode == "sim":
        profile = Profile.read(THIS_MACHINE)
        results |= simulated(SMOLLM2_135M, dict.fromkeys(PAPER_ARMS, profile), options.rounds)
    else:
        use_compilation_cache(default_cache_dir())
        loaded = load_model(options.model, progress=False)
        shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
        profiles, measured = real(loaded, shape, options.rounds)
        results |= measured
        if options.mode == "both":
            results["profiles"] = {name: one.to_dict() for name, one in profiles.items()}
            results |= simulated(shape, profiles, options.rounds)
            results |= compared(results["real"], results["sim"])
    report(*flat(results), options.json)


def real(
    loaded: LoadedModel, shape: ModelShape, num_rounds: int
) -> tuple[dict[str, Profile], dict[str, Any]]:
    """The arms on this machine, one after the other, and what the machine was like under each."""
    workload = _workload(SIZES, num_rounds, shape.vocab_size)
    place = Place(_pool_tokens(SIZES), _host_tokens(SIZES, shape), MAX_NUM_SEQS, workload.longest)
    machine, arms, profiles = Machine(loaded), {}, {}
    for name in PAPER_ARMS:
        arms[name], profiles[name] = machine.play(workload, ARMS[name], place)
        print(f"real {name}: {arms[name]['makespan_s']:.1f} s", flush=True)
    return profiles, {"real": arms, "real_speedup": speedups(arms)}


def simulated(
    shape: ModelShape, profiles: Mapping[str, Profile], num_rounds: int
) -> dict[str, Any]:
    """The same arms in virtual time, and the paper's setting."""
    arms = played(
        _workload(SIZES, num_rounds, shape.vocab_size), SIZES, shape, profiles, MAX_PREFILL
    )
    paper = played(
        _workload(PAPER_SIZES, num_rounds, LLAMA_3_1_8B.vocab_size),
        PAPER_SIZES,
        LLAMA_3_1_8B,
        dict.fromkeys(PAPER_ARMS, A10G),
        2048,
    )
    return {
        "sim": arms,
        "sim_speedup": speedups(arms),
        "a10g": paper,
        "a10g_speedup": speedups(paper),
        "a10g_kvflow_over_hicache": paper["hicache"]["makespan_s"] / paper["kvflow"]["makespan_s"],
    }


def played(
    workload: Workload,
    sizes: Sizes,
    shape: ModelShape,
    profiles: Mapping[str, Profile],
    max_prefill: int,
) -> dict[str, dict[str, Any]]:
    """Every arm's figures in virtual time."""
    return {
        name: play(
            Setting(
                shape,
                profiles[name],
                _pool_tokens(sizes),
                _host_tokens(sizes, shape),
                MAX_NUM_SEQS,
                max_prefill,
            ),
            workload,
            ARMS[name],
        ).figures
        for name in PAPER_ARMS
    }


def compared(
    measured: Mapping[str, Mapping[str, Any]], simulated: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Relative errors of virtual time, and whether it ranks the arms as they are."""
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
        "worst_error": max(abs(one["makespan_s"]) for one in errors.values()),
        "same_order": order(measured) == order(simulated),
    }


def flat(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """One line a figure of an arm, ``where.arm.figure``, and what some of them are to reach."""
    lines: dict[str, Any] = {}
    for key, value in results.items():
        if key in ("real", "sim", "a10g"):
            for arm, values in value.items():
                lines |= {f"{key}.{arm}.{name}": one for name, one in values.items()}
        else:
            lines[key] = value
    reach = {line: text for line in lines for goal, text in REACH.items() if line.endswith(goal)}
    return lines, reach


def _pool_tokens(sizes: Sizes) -> int:
    """For some prefixes, and what a call adds to its own."""
    own = -(-(sizes.dynamic + sizes.output) // PAGE) * PAGE
    return NUM_RESIDENT * sizes.fixed + own + PAGE


def _host_tokens(sizes: Sizes, shape: ModelShape) -> int:
    """For all prefixes, and suffixes; on this machine 0.75 GiB."""
    if sizes is SIZES:
        return int(0.75 * GIB) // shape.kv_bytes_per_token
    return (NUM_AGENTS + NUM_RESIDENT) * sizes.fixed


def _workload(sizes: Sizes, num_rounds: int, vocab_size: int) -> Workload:
    return cycle(num_agents=NUM_AGENTS, num_rounds=num_rounds, sizes=sizes, vocab_size=vocab_size)


if __name__ == "__main__":
    main()
