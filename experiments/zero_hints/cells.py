"""The workloads on which learned order is measured, long enough to be learned and then used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from experiments.compare.run_cell import Setting
from experiments.workloads import agents, fan_out, paper
from experiments.workloads.base import Call, Prompts, Run, Sizes, Workload
from kvflow_jax.sim import machines

MACHINE, MODEL = "a10g", "llama-3.1-8b"
_NUM_AGENTS = 10
_RING_SIZES = Sizes(8192, 32, 32)

Build = Callable[[int, int, bool], Workload]  # (vocab_size, seed, is_quick)


@dataclass(frozen=True)
class Cell:
    """A workload, and the host memory under which it runs.

    Attributes:
        host_share: capacity of the host tier over that of the device pool.
    """

    about: str
    build: Build
    host_share: float

    @property
    def setting(self) -> Setting:
        profile, shape = machines.machine(MACHINE), machines.shape(MODEL)
        pool = machines.pool_tokens(profile, shape)
        return Setting(shape, profile, pool, int(self.host_share * pool))

    def workload(self, seed: int, *, is_quick: bool) -> Workload:
        return self.build(machines.shape(MODEL).vocab_size, seed, is_quick)


def _cycle(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    return paper.cycle(
        num_agents=_NUM_AGENTS,
        num_rounds=5 if is_quick else 30,
        sizes=_RING_SIZES,
        vocab_size=vocab_size,
        seed=seed,
    )


def _branching(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    return agents.branching(
        num_runs=2 if is_quick else 6,
        num_rounds=9 if is_quick else 50,
        sizes=Sizes(4096, 64, 64),
        vocab_size=vocab_size,
        seed=seed,
    )


def _one_key(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    """Return the runs of ``_branching`` under one API key: nothing tells them apart."""
    workload = _branching(vocab_size, seed, is_quick)
    runs = [replace(run, tenant="app", workflow_id=run.tenant) for run in workload.runs]
    return Workload("branching, one key", tuple(runs))


def _team(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    return agents.team(
        num_runs=2 if is_quick else 8,
        num_rounds=6 if is_quick else 8,
        sizes=Sizes(8192, 128, 128),
        vocab_size=vocab_size,
        seed=seed,
    )


def _fan_out(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    return fan_out.fan_out(
        num_runs=2 if is_quick else 16, rate=0.1, vocab_size=vocab_size, seed=seed
    )


def _rewired(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    """Return a ring whose order changes half-way."""
    prompts = Prompts(seed, vocab_size)
    rounds = 3 if is_quick else 15
    orders = [[*range(_NUM_AGENTS)], prompts.rng.permutation(_NUM_AGENTS).tolist()]
    return _sequence("rewired ring", prompts, [n for order in orders for n in order * rounds])


def _shuffled(vocab_size: int, seed: int, is_quick: bool) -> Workload:
    """Return the agents of a ring in an order that cannot be learned."""
    prompts = Prompts(seed, vocab_size)
    order = prompts.rng.integers(0, _NUM_AGENTS, 60 if is_quick else 300)
    return _sequence("shuffled agents", prompts, order.tolist())


def _sequence(name: str, prompts: Prompts, order: Sequence[int]) -> Workload:
    calls: list[Call] = []
    for number, agent in enumerate(order):
        after = [number - 1] if number else []
        calls.append(prompts.call("app", f"agent{agent}", _RING_SIZES, after, 1))
    return Workload(name, (Run("app", "run", None, tuple(calls)),))


# Where a declared graph may gain over hierarchical caching.
GAIN_CELLS = {
    "cycle": Cell("the paper's ten agents in a ring", _cycle, 4.0),
    "branching": Cell("a choice, a fan-out and a join in a loop, six tenants", _branching, 1.0),
    "branching, half": Cell("the same with half of the host memory", _branching, 0.5),
    "team": Cell("five roles whose reviews send work back, no host", _team, 0.0),
    "team, half": Cell("the same with a host of half the pool", _team, 0.5),
    "fan-out": Cell("a planner, workers with tools, a verifier", _fan_out, 4.0),
}
# Where learning may mislead.
HARD_CELLS = {
    "one key": Cell("branching runs of six tenants under one API key", _one_key, 1.0),
    "rewired": Cell("a ring whose order changes half-way", _rewired, 4.0),
    "shuffled": Cell("ten agents in an order that cannot be learned", _shuffled, 4.0),
}
