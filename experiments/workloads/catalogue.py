"""Workloads by name, each of a size that causes evictions on its machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from experiments.workloads import agents, fan_out, paper, sessions
from experiments.workloads.base import Run, Sizes, Workload
from experiments.workloads.scale import Scale
from kvflow_jax.sim.machines import UnknownNameError

Build = Callable[[int, int, Scale], Workload]  # (vocab_size, seed, scale)


@dataclass(frozen=True)
class Entry:
    """A workload, and the machine and model it runs on by default."""

    about: str
    build: Build
    machine: str = "a10g"
    model: str = "llama-3.1-8b"


def _cycle(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return paper.cycle(
        num_agents=10,
        num_rounds=scale.of(quick=2, full=10),
        sizes=scale.sizes(Sizes(8192, 32, 32)),
        vocab_size=vocab_size,
        seed=seed,
    )


def _stages(num_branches: int) -> Build:
    def build(vocab_size: int, seed: int, scale: Scale) -> Workload:
        return paper.stages(
            num_branches=num_branches,
            num_rounds=scale.of(quick=2, full=10),
            sizes=scale.sizes(Sizes(4096, 32, 32)),
            vocab_size=vocab_size,
            seed=seed,
        )

    return build


def _concurrent(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return paper.concurrent(
        num_runs=scale.num_runs(quick=16, full=32),
        num_agents=4,
        num_rounds=scale.of(quick=2, full=3),
        sizes=scale.sizes(Sizes(1024, 256, 256)),
        vocab_size=vocab_size,
        seed=seed,
    )


def _peer(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return paper.peer(
        num_runs=scale.num_runs(quick=4, full=16), num_rounds=3, vocab_size=vocab_size, seed=seed
    )


def _branching(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return agents.branching(
        num_runs=scale.num_runs(quick=6, full=12),
        num_rounds=scale.of(quick=3, full=8),
        sizes=scale.sizes(Sizes(2048, 64, 64)),
        vocab_size=vocab_size,
        seed=seed,
    )


def _arriving(make: Callable[..., Workload], rate: float, num_runs: int) -> Build:
    def build(vocab_size: int, seed: int, scale: Scale) -> Workload:
        return make(
            num_runs=scale.num_runs(quick=num_runs // 4, full=num_runs),
            rate=scale.rate(rate),
            sizes=scale.sizes(Sizes(2048, 64, 64)),
            vocab_size=vocab_size,
            seed=seed,
        )

    return build


def _team(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return agents.team(
        num_runs=scale.num_runs(quick=4, full=8),
        num_rounds=scale.of(quick=3, full=8),
        sizes=scale.sizes(Sizes(8192, 128, 128)),
        vocab_size=vocab_size,
        seed=seed,
    )


def _leader(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return agents.leader_loop(
        num_runs=scale.num_runs(quick=6, full=8),
        num_rounds=scale.of(quick=2, full=5),
        sizes=scale.sizes(Sizes(1024, 64, 64)),
        vocab_size=vocab_size,
        seed=seed,
    )


def _coding(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return sessions.coding(
        num_runs=scale.num_runs(quick=12, full=24),
        rate=scale.rate(0.3),
        context=65_536,
        max_turns=scale.of(quick=25, full=35),
        vocab_size=vocab_size,
        seed=seed,
    )


def _fan_out(vocab_size: int, seed: int, scale: Scale) -> Workload:
    return fan_out.fan_out(
        num_runs=scale.num_runs(quick=6, full=16),
        rate=scale.rate(0.1),
        vocab_size=vocab_size,
        seed=seed,
    )


def _mix(vocab_size: int, seed: int, scale: Scale) -> Workload:
    """Coding sessions, a team, applications and leaders on one machine."""
    sizes = Sizes(4096, 64, 128)
    parts = [
        sessions.coding(
            num_runs=scale.of(quick=8, full=16),
            rate=0.3,
            context=65_536,
            max_turns=scale.of(quick=20, full=30),
            vocab_size=vocab_size,
            seed=seed,
        ),
        agents.team(
            num_runs=4,
            num_rounds=scale.of(quick=2, full=3),
            sizes=Sizes(8192, 128, 128),
            vocab_size=vocab_size,
            seed=seed + 1,
        ),
        agents.dag4(
            num_runs=scale.of(quick=20, full=40),
            rate=0.5,
            sizes=sizes,
            vocab_size=vocab_size,
            seed=seed + 2,
        ),
        agents.leader_loop(
            num_runs=scale.of(quick=4, full=6),
            num_rounds=scale.of(quick=1, full=3),
            sizes=sizes,
            vocab_size=vocab_size,
            seed=seed + 3,
        ),
    ]
    runs: list[Run] = []
    for part in parts:
        for run in part.runs:
            calls = tuple(replace(call, round=1) for call in run.calls)
            runs.append(replace(run, tenant=f"{part.name} {run.tenant}", calls=calls))
    return Workload("mix", tuple(runs))


WORKLOADS: dict[str, Entry] = {
    "cycle": Entry("the paper's ten agents in a ring, 8192/32/32", _cycle),
    "stages-1": Entry("ten stages in a ring, 4096/32/32", _stages(1), "h100-pcie", "qwen2.5-32b"),
    "stages-2": Entry(
        "ten stages of two agents that share a quarter of their prefixes",
        _stages(2),
        "h100-pcie",
        "qwen2.5-32b",
    ),
    "concurrent": Entry(
        "32 tenants with four agents each, 1024/256/256", _concurrent, "h100-pcie", "qwen2.5-32b"
    ),
    "peer": Entry("PEER's four roles on financial questions", _peer, "h100-pcie", "qwen2.5-32b"),
    "branching": Entry("a choice, a fan-out and a join in a loop, 2048/64/64", _branching),
    "chain-3": Entry("a chain of three, Poisson arrivals", _arriving(agents.chain3, 0.25, 120)),
    "dag-4": Entry("a diamond of four, Poisson arrivals", _arriving(agents.dag4, 0.2, 120)),
    "dag-10-wide": Entry(
        "eight in parallel between two, Poisson arrivals", _arriving(agents.dag10_wide, 0.07, 48)
    ),
    "team": Entry("five roles whose reviews send work back", _team),
    "leader": Entry("a leader and eight specialists, nine stages a round", _leader),
    "coding": Entry(
        "coding sessions with tools and subagents", _coding, "h100-pcie", "llama-3.1-8b"
    ),
    "fan-out": Entry("a planner, up to eight workers with tools, a verifier", _fan_out),
    "mix": Entry(
        "coding, teams, diamonds and leaders on one machine", _mix, "h100-pcie", "llama-3.1-8b"
    ),
}


def catalogue_entry(name: str) -> Entry:
    """Return an entry by name. Raises UnknownNameError if there is none."""
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, ["all", *WORKLOADS])
    return WORKLOADS[name]
