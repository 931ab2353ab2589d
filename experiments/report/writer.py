"""Write REPORT.md and its figures from the results of the other experiments.

    python -m experiments.paper --mode sim --json experiments/results/paper_sim.json
    python -m experiments.paper --mode real --quick --json experiments/results/paper_real_cpu.json
    python -m experiments.compare --workload all --arms all --json experiments/results/compare.json
    python -m experiments.terms --json experiments/results/terms.json
    python -m experiments.report

Every number in the report was measured or simulated by one of these commands. The causes of
differences from the paper are text of ``experiments.report.paper_reference``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compare.ablation import ARMS_OF_TERMS
from experiments.compare.arms import ARMS, PAPER_ARMS
from experiments.measure import command_name, first_line
from experiments.paper.evaluation import REPORTED_MEANS
from experiments.paper.real import simulation_errors
from experiments.report import limitations, plots, tables, timelines
from experiments.report.paper_reference import TOLERANCE, reported
from kvflow_jax.serve.argument_parser import ArgumentParser

RESULTS = Path(__file__).parents[1] / "results"
# Figures of an arm that the report reads.
FIGURES = frozenset(
    (
        *("makespan_s", "completions_s", "stall_share", "evicted_blocks", "preemptions"),
        *(f"completion_{kind}_s" for kind in ("mean", "p50", "p99")),
        *(f"ttft_{kind}_s" for kind in ("mean", "p99")),
        *(f"tokens_{kind}" for kind in ("from_device", "from_host", "recomputed")),
        *(f"prefetch_{kind}_blocks" for kind in ("useful", "late", "wasted")),
        *("load_bytes", "save_bytes"),
    )
)


@dataclass(frozen=True)
class Source:
    """A file of results.

    Attributes:
        command: experiment that writes it, with flags.
        arms: arms that each of its cells must have.
        is_needed: False if the report can be written without it.
    """

    command: str
    arms: frozenset[str]
    is_needed: bool = False


SOURCES = {
    "paper_sim": Source(
        "paper --mode sim", frozenset((*PAPER_ARMS, *limitations.OURS)), is_needed=True
    ),
    "compare": Source("compare --workload all --arms all", frozenset(ARMS), is_needed=True),
    "paper_real_cpu": Source("paper --mode real --quick", frozenset(("real", "sim"))),
    "terms": Source("terms", frozenset(ARMS_OF_TERMS)),
}


def main() -> int:
    parser = ArgumentParser(prog=command_name(), description=first_line(__doc__))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args()
    folder: Path = options.results
    found = {name: _read(folder / f"{name}.json") for name in SOURCES}
    problems = list(_problems(found, folder))
    if problems:
        print("\n".join(f"report: {problem}" for problem in problems), file=sys.stderr)
        return 2
    lines = list(_report(**found, figures=folder / "figures"))
    path = folder / "REPORT.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path}")
    return 0


def _read(path: Path) -> dict[str, Any]:
    """Read a file of results; empty if there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _problems(found: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield what is missing from the files of results, and the commands that add it."""
    for name, source in SOURCES.items():
        path = folder / f"{name}.json"
        remedy = f"python -m experiments.{source.command} --json {path}"
        if not found[name]:
            if source.is_needed:
                yield f"{path} does not exist; run: {remedy}"
            continue
        missing = next(_missing(found[name], source.arms, name), None)
        if missing is not None:
            yield f"{path}: {missing}; run again: {remedy}"


def _missing(results: Any, arms: frozenset[str], where: str) -> Iterator[str]:
    """Yield the arms and figures that a file lacks, as one of an older script may."""
    if not isinstance(results, dict):
        return
    if any(isinstance(item, dict) and "makespan_s" in item for item in results.values()):
        yield from (f"{where} has no arm {arm}" for arm in sorted(arms - results.keys()))
        for arm in arms & results.keys():
            missing = sorted(FIGURES - results[arm].keys())
            yield from (f"{where}, {arm}, has no {figure}" for figure in missing)
        return
    for name, item in results.items():
        yield from _missing(item, arms, name)


def _report(
    paper_sim: dict[str, Any],
    compare: dict[str, Any],
    paper_real_cpu: dict[str, Any],
    terms: dict[str, Any],
    figures: Path,
) -> Iterator[str]:
    workloads = {name: item for name, item in compare.items() if name != "machine"}
    terms = {name: item for name, item in terms.items() if name != "machine"}
    yield "# Results"
    yield ""
    yield "Written by `python -m experiments.report` from the JSON files beside it. Times are"
    yield "virtual unless a heading says otherwise: the engine's own scheduler, cache and"
    yield "controller run on a clock that a roofline model of a machine advances"
    yield "(`kvflow_jax/sim`). Machines, and the assumed share of their peak rates:"
    yield "`kvflow_jax/sim/machines.py`."
    yield ""
    yield from _summary(paper_sim, workloads, paper_real_cpu, terms)
    yield from _definitions()
    yield from _paper(paper_sim, figures)
    yield from _real(paper_real_cpu)
    yield from _beyond(workloads, figures)
    yield "## Ablation of kvflow-cost"
    yield ""
    yield from tables.terms(terms) if terms else _absent("terms")
    yield from limitations.page(paper_sim, workloads, terms)
    yield "## All figures"
    yield ""
    yield "Of the workloads beyond the paper's. Prompt tokens from the device, from the host, and"
    yield "computed, in thousands; evicted blocks; prefetched blocks that were useful, late, and"
    yield "wasted; preemptions. Other cells: `paper_sim.json`, `terms.json`."
    yield ""
    yield from tables.everything(workloads)


def _summary(
    paper: Mapping[str, Any],
    workloads: Mapping[str, Any],
    real: Mapping[str, Any],
    terms: Mapping[str, Any],
) -> Iterator[str]:
    yield "## Summary"
    yield ""
    figures = reported(paper)
    own = [figure for figure in figures if not figure.is_fitted]
    kinds = {"on machines with data sheet rates": False, "on machines with fitted rates": True}
    counts = [
        f"{sum(figure.is_reproduced for figure in chosen)} of {len(chosen)} {about}"
        for about, is_effective in kinds.items()
        if (chosen := [figure for figure in own if ("-effective" in figure.name) is is_effective])
    ]
    yield f"- **The paper.** Reproduced within {TOLERANCE:.0%} are"
    yield f"  {', '.join(counts)}, not counting the"
    yield f"  {len(figures) - len(own)} that rates were fitted to. The largest errors, with their"
    yield "  [causes](#what-of-the-paper-is-not-reproduced):"
    by_error = sorted(own, key=lambda figure: abs(figure.error))
    furthest = {(figure.pair, figure.paper): figure for figure in by_error}
    for figure in list(furthest.values())[:-4:-1]:
        speeds = f"{figure.ours:.2f}x, the paper {figure.paper:.2f}x"
        yield f"  - {figure.name}, {figure.pair}: {speeds}"
    if real:
        cells = real["arms_played"]
        errors = simulation_errors(cells)
        yield f"- **Accuracy of virtual time.** The times of {len(cells)} runs on a CPU are within"
        yield f"  {errors['worst_error']:.0%} of it; ratios between two arms are within"
        yield f"  {errors['worst_ratio_error']:.0%}. No cell has run on a GPU or TPU yet."
    yield f"- **Beyond the paper**, {len(workloads)} workloads, mean completion of kvflow-guard:"
    yield f"  {_range(workloads, 'gpu-only')} as fast as gpu-only,"
    yield f"  {_range(workloads, 'hicache')} as fast as hicache. Time saved against gpu-only, as a"
    yield "  share of what the fastest arm saves, mean over workloads with a saving:"
    closed = tables.shares_closed(workloads)
    yield "  " + ", ".join(f"{arm} {share:.0%}" for arm, share in closed.items()) + "."
    tail = {
        name: arms["kvflow-guard"]["ttft_p99_s"] / arms["hicache"]["ttft_p99_s"]
        for name, arms in workloads.items()
    }
    slower = sum(ratio > 1 + plots.SAME for ratio in tail.values())
    worst = max(tail, key=tail.__getitem__)
    times = [workloads[worst][arm]["ttft_p99_s"] for arm in ("kvflow-guard", "hicache")]
    yield "- **Tail latency** is worse: the 99th percentile of the time to first token exceeds"
    yield f"  hicache's in {slower} of them, most in {worst}, {times[0]:.1f} s to {times[1]:.1f}"
    yield "  ([all such cells](#cells-in-which-kvflow-is-slower))."
    if terms:
        gains = tables.gains_of_cost(terms)
        by_share = ", ".join(f"{gain:.2f}x with {share}" for share, gain in gains.items())
        yield "- **Little host memory.** kvflow-cost over kvflow-guard, mean completion:"
        yield f"  {by_share} of the device pool's size. Throttled runs"
        yield "  [pay for it](#the-cost-of-admission-control-to-throttled-runs)."
    yield ""


def _range(workloads: Mapping[str, Any], slow: str) -> str:
    """Format the least and the largest speedup of kvflow-guard over an arm."""
    key = tables.COMPLETION
    gains = {name: arms[slow][key] / arms["kvflow-guard"][key] for name, arms in workloads.items()}
    least, most = (pick(gains, key=gains.__getitem__) for pick in (min, max))
    return f"{gains[least]:.2f}x ({least}) to {gains[most]:.2f}x ({most})"


def _definitions() -> Iterator[str]:
    yield "## Definitions"
    yield ""
    for name, arm in ARMS.items():
        yield f"- `{name}`: {arm.about}"
    yield ""
    yield "The oracle is not an upper bound. It evicts the block that is read last, by the record"
    yield "of a previous run, under KVFlow's own prefetch and scheduler. It starts from"
    yield "kvflow-guard's run, and equals that run if no later one is faster. Arms with fewer"
    yield "wasted prefetches, or with admission control, can be faster."
    yield ""
    yield "**Makespan**: from the start of the first call after round 0 to the end of the last"
    yield "call. **Completion**: of a workflow run, from its arrival to its end, round 0 included."
    yield "All other figures are of the calls after round 0. **Stall**: the share of the makespan"
    yield "in which the device waits for a copy and has no other work. Sizes are tokens, fixed"
    yield "prefix/dynamic suffix/output. **Over**: at 1.20x the first arm takes 1/1.20 of the"
    yield "second arm's time."
    yield ""


def _paper(paper: Mapping[str, Any], figures: Path) -> Iterator[str]:
    yield "## The paper's evaluation (arXiv 2507.07400)"
    yield ""
    yield from tables.paper_cells(paper)
    yield "`a10g` and `h100-pcie` have rates of data sheets and the paper's link rates; an"
    yield "efficient on-demand host tier loses little there. `h100-effective` differs in the reload"
    yield "rate, fitted to the cell 4096/32/32 alone; `a10g-effective` in the reload rate and the"
    yield "rate of matrix products, fitted to 8192/32/32."
    yield ""
    for slow, means in (("hicache", REPORTED_MEANS), ("gpu-only", {})):
        file = plots.speedup_grids(paper, "kvflow", slow, means, figures)
        if file is not None:
            yield f"![kvflow over {slow}, by machine and sizes]({file})"
            yield ""
    residency, timeline = timelines.draw(figures)
    yield "The cycle 8192/32/32 on `a10g`, two rounds after the first:"
    yield ""
    yield f"![share of each prefix on the device]({residency})"
    yield ""
    yield "The engine's steps and copies from the first call of the last round on, for the time"
    yield "that gpu-only takes for one call:"
    yield ""
    yield f"![steps, copies and stalls]({timeline})"
    yield ""


def _real(real: Mapping[str, Any]) -> Iterator[str]:
    yield "## Real execution beside virtual time"
    yield ""
    if not real:
        yield from _absent("paper_real_cpu")
        return
    machine = real["machine"]
    yield f"On {machine['cpu']} with {machine['cores']} cores, SmolLM2-135M in float32; the host"
    yield f"link is emulated: loading a token takes {real['link_ratio']:.3f} of the time to compute"
    yield "it. `python -m experiments.paper --mode real --quick`. Makespans without the first"
    yield "round:"
    yield ""
    yield from tables.real(real)


def _beyond(workloads: Mapping[str, Any], figures: Path) -> Iterator[str]:
    yield "## Workloads beyond the paper's"
    yield ""
    yield from tables.speeds(workloads)
    yield f"![every arm against gpu-only]({plots.arms(workloads, figures)})"
    yield ""
    file = plots.distributions(workloads, figures)
    if file is not None:
        yield "Share of completed runs over time, for workloads whose runs end at different times:"
        yield ""
        yield f"![completion times]({file})"
        yield ""


def _absent(name: str) -> Iterator[str]:
    yield f"Missing: `{name}.json`. To write it, run `python -m experiments.{SOURCES[name].command}"
    yield f"--json experiments/results/{name}.json`."
    yield ""


if __name__ == "__main__":
    sys.exit(main())
