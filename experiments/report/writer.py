"""Writes REPORT.md and its figures from what the other experiments have left behind.

    python -m experiments.paper --mode sim --json experiments/results/paper_sim.json
    python -m experiments.paper --mode real --quick --json experiments/results/paper_real_cpu.json
    python -m experiments.compare --workload all --arms all --json experiments/results/compare.json
    python -m experiments.terms --json experiments/results/terms.json
    python -m experiments.report

Every figure in it is one that they have measured or simulated; why some are as they are is text of
``experiments.report.limitations``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compare.ablation import ARMS_OF_TERMS
from experiments.compare.arms import ARMS, PAPER_ARMS
from experiments.paper.evaluation import REPORTED_MEANS
from experiments.paper.real import compared
from experiments.report import limitations, plots, tables, timelines
from experiments.report.paper_reference import OFF, reported

RESULTS = Path(__file__).parents[1] / "results"
# Of an arm, what the report reads.
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
        command: what makes it.
        arms: those that each of its cells must have.
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are")
    options = parser.parse_args()
    folder: Path = options.results
    found = {name: _read(folder / f"{name}.json") for name in SOURCES}
    complaints = list(_complaints(found, folder))
    if complaints:
        print("\n".join(f"report: {one}" for one in complaints), file=sys.stderr)
        return 2
    lines = list(_report(**found, figures=folder / "figures"))
    path = folder / "REPORT.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")
    return 0


def _read(path: Path) -> dict[str, Any]:
    """A file of results; empty where there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _complaints(found: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for name, source in SOURCES.items():
        path = folder / f"{name}.json"
        remedy = f"python -m experiments.{source.command} --json {path}"
        if not found[name]:
            if source.is_needed:
                yield f"{path} is not there; it is made by: {remedy}"
            continue
        lacks = next(_lacks(found[name], source.arms, name), None)
        if lacks is not None:
            yield f"{path}: {lacks}; make it again: {remedy}"


def _lacks(results: Any, arms: frozenset[str], where: str) -> Iterator[str]:
    """What a file that an older script wrote has not got."""
    if not isinstance(results, dict):
        return
    if any(isinstance(one, dict) and "makespan_s" in one for one in results.values()):
        yield from (f"{where} has no arm {arm}" for arm in sorted(arms - results.keys()))
        for arm in arms & results.keys():
            missing = sorted(FIGURES - results[arm].keys())
            yield from (f"{where}, {arm}, has no {figure}" for figure in missing)
        return
    for name, one in results.items():
        yield from _lacks(one, arms, name)


def _report(
    paper_sim: dict[str, Any],
    compare: dict[str, Any],
    paper_real_cpu: dict[str, Any],
    terms: dict[str, Any],
    figures: Path,
) -> Iterator[str]:
    workloads = {name: one for name, one in compare.items() if name != "machine"}
    terms = {name: one for name, one in terms.items() if name != "machine"}
    yield "# Results"
    yield ""
    yield "Written by `python -m experiments.report` from the JSON files beside it. Times are"
    yield "virtual unless a heading says otherwise: the engine's own scheduler, cache and"
    yield "controller on a clock that a roofline model of a machine moves (`experiments/sim`)."
    yield "Machines and the shares of their peaks that are assumed: `kvflow_jax/sim/machines.py`."
    yield ""
    yield from _summary(paper_sim, workloads, paper_real_cpu, terms)
    yield from _words()
    yield from _paper(paper_sim, figures)
    yield from _real(paper_real_cpu)
    yield from _beyond(workloads, figures)
    yield "## What each part of kvflow-cost brings"
    yield ""
    yield from tables.terms(terms) if terms else _absent("terms")
    yield from limitations.page(paper_sim, workloads, terms)
    yield "## All figures"
    yield ""
    yield "Of the workloads beyond the paper's. Prompt tokens from device, host, and computed, in"
    yield "thousands; blocks evicted; blocks prefetched that were of use, late, and wasted; how"
    yield "often a request was set back. Of the other cells: `paper_sim.json`, `terms.json`."
    yield ""
    yield from tables.everything(workloads)


def _summary(
    paper: Mapping[str, Any],
    workloads: Mapping[str, Any],
    real: Mapping[str, Any],
    terms: Mapping[str, Any],
) -> Iterator[str]:
    yield "## In short"
    yield ""
    figures = reported(paper)
    own = [one for one in figures if not one.is_fitted]
    kinds = {"on machines by their data sheets": False, "on machines with fitted rates": True}
    counts = [
        f"{sum(one.is_reproduced for one in chosen)} of {len(chosen)} {about}"
        for about, is_effective in kinds.items()
        if (chosen := [one for one in own if ("-effective" in one.name) is is_effective])
    ]
    yield f"- **The paper.** Within {OFF:.0%} come"
    yield f"  {', '.join(counts)}; not counted are the"
    yield f"  {len(figures) - len(own)} that the rates were fitted to. Furthest off, and"
    yield "  [why](#what-of-the-paper-is-not-reproduced):"
    furthest = {(one.pair, one.paper): one for one in sorted(own, key=lambda one: abs(one.off))}
    for one in list(furthest.values())[:-4:-1]:
        yield f"  - {one.name}, {one.pair}: {one.ours:.2f}x, the paper {one.paper:.2f}x"
    if real:
        played = real["arms_played"]
        errors = compared(played)
        yield f"- **Is virtual time right?** {len(played)} runs on a CPU took what it says within"
        yield f"  {errors['worst_error']:.0%}; ratios between two arms are within"
        yield f"  {errors['worst_ratio_error']:.0%}. No GPU or TPU has played any cell yet."
    yield f"- **Beyond the paper**, {len(workloads)} workloads, mean completion of kvflow-guard:"
    yield f"  {_range(workloads, 'gpu-only')} as fast as gpu-only,"
    yield f"  {_range(workloads, 'hicache')} as fast as hicache. Of what the fastest arm saves"
    yield "  against gpu-only, the mean where there is something to save:"
    closed = tables.shares_closed(workloads)
    yield "  " + ", ".join(f"{arm} {share:.0%}" for arm, share in closed.items()) + "."
    tail = {
        name: played["kvflow-guard"]["ttft_p99_s"] / played["hicache"]["ttft_p99_s"]
        for name, played in workloads.items()
    }
    slower = sum(one > 1 + plots.SAME for one in tail.values())
    worst = max(tail, key=tail.__getitem__)
    times = [workloads[worst][arm]["ttft_p99_s"] for arm in ("kvflow-guard", "hicache")]
    yield "- **The tail** is where it loses: the first token's 99th percentile is later than"
    yield f"  hicache's in {slower} of them, most in {worst}, {times[0]:.1f} s to {times[1]:.1f}"
    yield "  ([all such cells](#where-kvflow-loses-to-it))."
    if terms:
        gains = tables.gains_of_cost(terms)
        said = ", ".join(f"{gain:.2f}x with {share}" for share, gain in gains.items())
        yield "- **Little host memory.** kvflow-cost over kvflow-guard, mean completion:"
        yield f"  {said} of the device's room. Those who are held back"
        yield "  [wait for it](#what-turns-cost-those-who-wait)."
    yield ""


def _range(workloads: Mapping[str, Any], slow: str) -> str:
    key = tables.COMPLETION
    gains = {
        name: played[slow][key] / played["kvflow-guard"][key] for name, played in workloads.items()
    }
    least, most = (pick(gains, key=gains.__getitem__) for pick in (min, max))
    return f"{gains[least]:.2f}x ({least}) to {gains[most]:.2f}x ({most})"


def _words() -> Iterator[str]:
    yield "## Arms and words"
    yield ""
    for name, arm in ARMS.items():
        yield f"- `{name}`: {arm.about}"
    yield ""
    yield "The oracle is no upper bound. It evicts what will be read last, as a run before"
    yield "recorded it, under KVFlow's own prefetch and scheduler; it starts from kvflow-guard's"
    yield "run, and where it finds nothing faster equals it. Arms that prefetch less in vain, or"
    yield "let runs take turns, pass it."
    yield ""
    yield "**Makespan**: from the start of the first call after round 0 to the end of the last."
    yield "**Completion**: of a run, from its arrival to its end, round 0 included. All else is of"
    yield "the calls after round 0. **Stall**: the share of the makespan in which the device waits"
    yield "for a copy with nothing else to do. Sizes are tokens, fixed prefix/dynamic"
    yield "suffix/output. **Over**: at 1.20x the first named takes 1/1.20 of the second's time."
    yield ""


def _paper(paper: Mapping[str, Any], figures: Path) -> Iterator[str]:
    yield "## The paper's evaluation (arXiv 2507.07400)"
    yield ""
    yield from tables.paper_cells(paper)
    yield "`a10g` and `h100-pcie` are the machines as data sheets and the paper's links have them;"
    yield "a good reactive host tier loses little there. `h100-effective` differs in one rate,"
    yield "reload, fitted on the cell 4096/32/32 alone; `a10g-effective` in two, reload and"
    yield "products, fitted on 8192/32/32."
    yield ""
    for slow, means in (("hicache", REPORTED_MEANS), ("gpu-only", {})):
        file = plots.speedup_grids(paper, "kvflow", slow, means, figures)
        if file is not None:
            yield f"![kvflow over {slow}, by machine and sizes]({file})"
            yield ""
    residency, lanes = timelines.draw(figures)
    yield "The cycle 8192/32/32 on `a10g`, two rounds after the first:"
    yield ""
    yield f"![whose prefix is on the device]({residency})"
    yield ""
    yield "What the engine does meanwhile, from the first call of the last round on, for as long as"
    yield "gpu-only takes for one call:"
    yield ""
    yield f"![steps, copies and stalls]({lanes})"
    yield ""


def _real(real: Mapping[str, Any]) -> Iterator[str]:
    yield "## Real execution beside virtual time"
    yield ""
    if not real:
        yield from _absent("paper_real_cpu")
        return
    machine = real["machine"]
    yield f"On {machine['cpu']} with {machine['cores']} cores, SmolLM2-135M in float32, the host"
    yield f"link emulated at {real['link_ratio']:.3f} of the time to compute; `python -m"
    yield "experiments.paper --mode real --quick`. Makespans, of the rounds after the first:"
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
        yield "Where runs do not all end together, how many have ended by when:"
        yield ""
        yield f"![completion times]({file})"
        yield ""


def _absent(name: str) -> Iterator[str]:
    yield f"Not there: `{name}.json`. `python -m experiments.{SOURCES[name].command} --json"
    yield f"experiments/results/{name}.json` makes it."
    yield ""


if __name__ == "__main__":
    sys.exit(main())
