"""One cell: one arm runs one workload in virtual time."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

from experiments.compare.arms import Arm, figures
from experiments.compare.driver import CallRecord, Driver
from experiments.compare.oracle import Oracle
from experiments.workloads.base import Workload
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.trace import NoTrace, Tracer
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.profile import ModelShape, Profile
from kvflow_jax.sim.simulation import Simulation

PAGE = 16
ORACLE_RUNS = 3  # at most; runs end once the order of calls repeats


class DoesNotFitError(ValueError):
    """A workload needs more memory than the setting has."""


@dataclass(frozen=True)
class Setting:
    """The model, the machine and the capacities under which workloads run.

    Attributes:
        pool_tokens, host_tokens: capacity of the device pool and of the host tier, tokens.
        max_num_seqs: requests that run at once.
        max_prefill_tokens: prompt tokens of a step.
    """

    model: ModelShape
    profile: Profile
    pool_tokens: int
    host_tokens: int
    max_num_seqs: int = 64
    max_prefill_tokens: int = 2048

    def check(self, workload: Workload) -> None:
        """Raise DoesNotFitError if the longest call does not fit the pool."""
        needed = workload.longest + PAGE
        if self.pool_tokens <= 0:
            raise DoesNotFitError(
                f"the weights of {self.model.name} do not fit {self.profile.name}, or its memory "
                f"size is unknown: name several devices (--machine '{self.profile.name} x4'), or "
                "the size of the KV pool in tokens (--pool-tokens)"
            )
        if needed > self.pool_tokens:
            raise DoesNotFitError(
                f"{workload.name} has a call of {workload.longest} tokens; the pool of "
                f"{self.model.name} on {self.profile.name} holds {max(self.pool_tokens, 0)}, "
                f"{needed - self.pool_tokens} too few"
            )


class EngineTrace(NoTrace):
    """A tracer that may read the state of the engine that it traces."""

    engine: Engine


@dataclass(frozen=True)
class CellResult:
    """Figures of a run, and the record of each of its calls."""

    figures: dict[str, Any]
    records: list[CallRecord]


def run_cell(
    setting: Setting, workload: Workload, arm: Arm, tracer: Tracer | None = None
) -> CellResult:
    """Run a workload under an arm.

    An oracle arm runs until the order of its calls equals the order its oracle assumed, at most
    ORACLE_RUNS times; the fastest run counts, the first one without an oracle included.

    Raises:
        DoesNotFitError: a call is larger than the pool.
    """
    setting.check(workload)
    best = _run_once(setting, workload, arm, tracer=tracer)
    if not arm.is_oracle:
        return best
    last, assumed = best, None
    for _ in range(ORACLE_RUNS):
        oracle = Oracle(workload, last.records, PAGE)
        if oracle.order == assumed:
            break
        last, assumed = _run_once(setting, workload, arm, oracle=oracle), oracle.order
        best = min(best, last, key=lambda result: float(result.figures["makespan_s"]))
    return best


def _run_once(
    setting: Setting,
    workload: Workload,
    arm: Arm,
    *,
    oracle: Oracle | None = None,
    tracer: Tracer | None = None,
) -> CellResult:
    cache = arm.cache
    if oracle is not None:
        cache = replace(cache, eviction=oracle.eviction_order)
    simulation = Simulation(
        setting.model,
        setting.profile,
        cache,
        pool_tokens=workload.total + 64 * PAGE if arm.is_unlimited else setting.pool_tokens,
        host_tokens=setting.host_tokens,
        max_num_seqs=setting.max_num_seqs,
        max_prefill_tokens=setting.max_prefill_tokens,
        max_model_len=-(-(workload.longest + 1) // PAGE) * PAGE,
        page_size=PAGE,
    )
    driver = Driver(workload, simulation, hints_of=arm.hints_of)
    if oracle is not None:
        oracle.listen(driver.submitted.__getitem__, simulation.engine.cache)
        tracer = oracle
    if tracer is not None:
        simulation.engine.tracer = tracer
        if isinstance(tracer, EngineTrace):
            tracer.engine = simulation.engine
    # The garbage collector would scan live objects of millions of tokens and free nothing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        driver.start()
        simulation.run()
    finally:
        if was_enabled:
            gc.enable()
    records = driver.wait(0)
    before = driver.warm_stats or EngineStats()
    return CellResult(figures(records, before, simulation.stats), records)
