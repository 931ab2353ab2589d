"""D-AdaST beside its rivals: the paper's claims, and what this machine measures.

    python -m experiments.minimax --json experiments/results/minimax_cpu.json \\
        --figures experiments/results/figures
    python -m experiments.minimax --quick
    python -m experiments.minimax --only rate stepsizes

All but training is in float64. The exit code is 1 if a figure that is demanded is missed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.measure import arguments, command_name, output_folder, write_json
from experiments.minimax import (
    coordinates,
    cost,
    frozen,
    heterogeneity,
    rate,
    stepsizes,
    two_nodes,
)
from experiments.minimax.digits import comparison, data
from experiments.minimax.part import Part, Result, format_table
from kvflow_jax.errors import ConfigError

PARTS: dict[str, Part] = {
    "two-nodes": Part("the paper's quadratic (6), 2 nodes, gamma .1", two_nodes.run),
    "frozen": Part("a problem that D-TiAda never leaves, 3 nodes, complete graph", frozen.run),
    "heterogeneity": Part("16 nodes, exponential graph, unlike by a spread", heterogeneity.run),
    "rate": Part("16 nodes, spread 1, noise 1, five seeds with 95% intervals", rate.run),
    "stepsizes": Part("16 nodes, spread 1, noise .1, five decades of stepsizes", stepsizes.run),
    "digits": Part(
        "robust training of 4,538 weights on 8 x 8 digits, 20 nodes, mostly two classes each",
        comparison.run,
    ),
    "coordinates": Part("the coordinate-wise variant, scales from 1 to 1e-3", coordinates.run),
    "cost": Part("a step's time and its message", cost.run),
}

# What the paper has and this command has not, and why.
LEFT_OUT = (
    "fig. 2: its functions could not be had; as remembered they have no minimum in x. "
    "The family of 16 nodes stands in for them",
    "fig. 4: a GAN on CIFAR-10, for want of the data and of the exact form of D-AdaST-Adam",
)

# Printed above the tables; the words in brackets are those of ``Status``.
LEGEND = """\
|grad_x f|^2  at the mean of the nodes
zeta_v^2      inconsistency: largest squared relative difference of a node's stepsize of x from that
              of the mean accumulator; 0: all nodes have the same
K, calls      gradient calls of a node
[...]         a claim read in a source [certain], of the paper but not read again [from memory],
              derived or constructed here [derived], a demand of this project [ours]
"""


def main() -> int:
    """Run the parts, print and write what they measured; return the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small form of every part")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help="these parts only")
    parser.add_argument(
        "--figures", type=output_folder, metavar="FOLDER", help="also draw figures; needs '.[viz]'"
    )
    options = parser.parse_args()
    names = list(dict.fromkeys(options.only or PARTS))
    if options.figures:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("figures need matplotlib: python -m pip install '.[viz]'")
        # Here, as only figures need matplotlib.
        from experiments.minimax import plots

        if not plots.DRAW.keys() & set(names):
            parser.error(f"no figures of {', '.join(names)}; there are of {', '.join(plots.DRAW)}")
    if "digits" in names:
        try:
            data.load()
        except ConfigError as error:
            parser.error(str(error))
    jax.config.update("jax_enable_x64", True)
    print(LEGEND)
    results = {}
    for name in names:
        begin = time.perf_counter()
        results[name] = PARTS[name].run(options.quick)
        _print(name, results[name], time.perf_counter() - begin)
    for what in LEFT_OUT:
        print(f"left out: {what}")
    if options.figures:
        _draw({name: result.figures for name, result in results.items()}, options.figures)
    write_json(_as_json(results, is_quick=options.quick), options.json)
    missed = [
        f"{name}: {finding.ours}, not {finding.goal}"
        for name, result in results.items()
        for finding in result.findings
        if finding.is_reached is False
    ]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def _print(name: str, result: Result, seconds: float) -> None:
    """Print a part's table, and its findings beside the claims."""
    print(f"{name}: {PARTS[name].about} ({seconds:.0f} s; {command_name()} --only {name})")
    if result.table:
        print(format_table(result.table))
    for finding in result.findings:
        print(f"  claim  {finding.claim} [{finding.status.value}]")
        print(f"  here   {finding.ours}")
        if finding.goal:
            verdict = {True: "reached", False: "MISSED", None: "not judged with --quick"}
            print(f"  goal   {finding.goal}: {verdict[finding.is_reached]}")
    print(flush=True)


def _draw(figures: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Draw the figures of the parts that have one."""
    # Here: matplotlib is needed by nothing else.
    from experiments.minimax import plots

    for name, draw in plots.DRAW.items():
        if name in figures:
            print(f"drew {draw(figures[name], folder)}")


def _as_json(results: Mapping[str, Result], *, is_quick: bool) -> dict[str, Any]:
    """Return what the JSON holds: demanded figures at the top, then each part."""
    demanded = {key: value for one in results.values() for key, value in one.demanded.items()}
    parts = {
        name: {
            "findings": [
                {
                    "claim": finding.claim,
                    "status": finding.status.value,
                    "ours": finding.ours,
                    "goal": finding.goal,
                    "is_reached": finding.is_reached,
                }
                for finding in result.findings
            ],
            "figures": result.figures,
        }
        for name, result in results.items()
    }
    return {"is_quick": is_quick, **demanded, "parts": parts, "left_out": LEFT_OUT}


if __name__ == "__main__":
    raise SystemExit(main())
