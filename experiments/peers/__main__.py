"""Compare this engine with vLLM, llama.cpp and transformers, on this CPU and the same weights.

    python -m experiments.peers --json FILE
    python -m experiments.peers --arms kvflow,vllm-float32 --only columns
    python -m experiments.peers --avx2      # as on a CPU without AVX-512 and AMX
    python -m experiments.peers --quick     # tiny random model, no peers: under a minute

The peers are built once, in the cache folder, which takes about a quarter of an hour and 6 GB.
Then one process after the other measures prefill, decode and a cached prefix, and one server after
the other runs the agentic loads, all with the same bytes of KV. Without ``--json``, a run of all
arms is kept in ``experiments/results`` under the name of the CPU.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.make_folder import temporary_folder
from experiments.measure import BandwidthCeiling, arguments, write_json
from experiments.peers.arms import ARMS, Arm, Setup
from experiments.peers.comparison import Comparison, peer_setup
from experiments.peers.cpu import Cpu, this_cpu
from experiments.peers.drivers.columns import Plan
from experiments.peers.loads import LOADS, QUICK_LOADS
from experiments.peers.ratios import column_ratios, load_ratios
from experiments.peers.tables import print_header, print_ratios
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.hf_config import read_config_file

RESULTS = Path(__file__).parents[1] / "results"
QUICK_PLAN = Plan(repeats=1, num_steps=8, vocab=(0, 256), greedy_prompt=(1, 2, 3))
# Deterministic: two batch shapes, which compile in seconds.
QUICK_OPTIONS = {"pool_gib": 0.02, "max_num_seqs": 8, "deterministic": True}
QUICK_FLAGS = ("--deterministic", "--max-model-len=192")
NOT_QUICK = "--quick runs this engine in float32 alone"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--arms",
        type=arms_of,
        default=ARMS,
        metavar="NAMES",
        help="engines or arms, separated by commas; default: all, "
        + ", ".join(arm.name for arm in ARMS),
    )
    parser.add_argument(
        "--only", choices=("columns", "loads"), help="default: the columns, then the agentic loads"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, no peers"
    )
    parser.add_argument(
        "--avx2", action="store_true", help="no engine uses the CPU's AVX-512 and AMX"
    )
    options = parser.parse_args()
    cpu = this_cpu().limited() if options.avx2 else this_cpu()
    with temporary_folder() if options.quick else nullcontext() as folder:
        comparison = prepare(options.arms, folder, cpu)
        if options.only != "loads":
            print_header()
            comparison.measure_columns()
        if options.only != "columns":
            comparison.run_loads(QUICK_LOADS if options.quick else LOADS)
    path = options.json
    if path is None and not options.quick and not options.only and options.arms == ARMS:
        path = RESULTS / f"peers_{cpu.file_name}.json"
    write_json(summary(comparison, cpu), path)
    return 0 if comparison.is_complete else 1


def arms_of(text: str) -> tuple[Arm, ...]:
    """Return the arms that a list of engines and arms names, in the order of the table."""
    names = {name.strip() for name in text.split(",")}
    if unknown := names - {arm.name for arm in ARMS} - {arm.engine for arm in ARMS}:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return tuple(arm for arm in ARMS if names & {arm.name, arm.engine})


def prepare(arms: Sequence[Arm], folder: Path | None, cpu: Cpu) -> Comparison:
    """Build the peers of the arms; return the comparison, nothing of which is measured yet.

    Args:
        folder: tiny model of the quick form, which has no peers; None: the embedded model.
    """
    if folder is not None:
        return Comparison(
            arms,
            Setup({}, None, str(folder), QUICK_OPTIONS),
            QUICK_PLAN,
            read_config_file(folder),
            skipped={arm.name: NOT_QUICK for arm in arms if arm != ARMS[0]},
            server_flags=QUICK_FLAGS,
        )
    peers = list(dict.fromkeys(arm.engine for arm in arms if not arm.is_ours))
    setup, reasons = peer_setup(peers, embedded.NAME, default_cache_dir(), cpu)
    skipped = {arm.name: reasons[arm.engine] for arm in arms if arm.engine in reasons}
    return Comparison(arms, setup, Plan(), embedded.CONFIG, skipped)


def summary(comparison: Comparison, cpu: Cpu) -> dict[str, Any]:
    """Return the figures and ratios of a comparison, and print the ratios."""
    columns = column_ratios(comparison.arms, comparison.columns)
    loads = load_ratios(comparison.arms, comparison.makespans())
    print_ratios(columns, loads)
    ratios = {group: {c: r.value for c, r in found.items()} for group, found in columns.items()}
    best = {group: {c: r.names for c, r in found.items()} for group, found in columns.items()}
    return {
        "cpu": {
            **asdict(cpu),
            "cores": os.cpu_count(),
            "memory_gb_per_s": memory_gb_per_s(comparison.config),
        },
        "plan": asdict(comparison.plan),
        "columns": comparison.columns,
        "loads": comparison.loads,
        "ratios": {**ratios, **{load: r.value for load, r in loads.items()}},
        "best": {**best, **{load: r.names for load, r in loads.items()}},
    }


def memory_gb_per_s(config: ModelConfig) -> float:
    """Return the rate at which all cores read the model's weights in float32."""
    return BandwidthCeiling(config).bytes_per_s() / 1e9


if __name__ == "__main__":
    raise SystemExit(main())
