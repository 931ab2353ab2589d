"""One arm of one workload in virtual time."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

from experiments.compare.arms import Arm, figures
from experiments.compare.driver import CallRecord, Driver
from experiments.compare.oracle import Oracle
from experiments.workloads.base import Workload
from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.trace import NoTrace, Tracer
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.profile import ModelShape, Profile
from kvflow_jax.sim.simulation import Simulation

PAGE = 16
ORACLE_RUNS = 3  # at most; it ends when the order of calls is the one it was told


class DoesNotFitError(ValueError):
    """A workload needs more than the setting has."""


@dataclass(frozen=True)
class Setting:
    """Where workloads are played.

    Attributes:
        pool_tokens, host_tokens: capacity of each tier.
    """

    model: ModelShape
    profile: Profile
    pool_tokens: int
    host_tokens: int
    max_num_seqs: int = 64
    max_prefill_tokens: int = 2048

    def check(self, workload: Workload) -> None:
        """Raise DoesNotFitError where the longest call has no room."""
        needed = workload.longest + PAGE
        if self.pool_tokens <= 0:
            raise DoesNotFitError(
                f"the weights of {self.model.name} do not fit {self.profile.name}, or how much "
                f"memory that has is not known: name several, '{self.profile.name} x4', or say how "
                "many tokens of KV there is room for (--pool-tokens)"
            )
        if needed > self.pool_tokens:
            raise DoesNotFitError(
                f"{workload.name} has a call of {workload.longest} tokens; the pool of "
                f"{self.model.name} on {self.profile.name} holds {max(self.pool_tokens, 0)}, "
                f"{needed - self.pool_tokens} too few"
            )


class EngineTrace(NoTrace):
    """A tracer that looks into the engine it listens to."""

    engine: Engine


@dataclass(frozen=True)
class Played:
    """What came of it."""

    figures: dict[str, Any]
    records: list[CallRecord]


def play(setting: Setting, workload: Workload, arm: Arm, tracer: Tracer | None = None) -> Played:
    """Play a workload under an arm.

    An oracle arm is played until the order of calls is the one its oracle was told, at most
    ORACLE_RUNS times; the fastest counts, its first run without an oracle included.

    Raises:
        DoesNotFitError: a call is larger than the pool.
    """
    setting.check(workload)
    best = _play(setting, workload, arm, tracer=tracer)
    if not arm.is_oracle:
        return best
    last, told = best, None
    for _ in range(ORACLE_RUNS):
        oracle = Oracle(workload, last.records, PAGE)
        if oracle.order == told:
            break
        last, told = _play(setting, workload, arm, oracle=oracle), oracle.order
        best = min(best, last, key=lambda played: float(played.figures["makespan_s"]))
    return best


def _play(
    setting: Setting,
    workload: Workload,
    arm: Arm,
    *,
    oracle: Oracle | None = None,
    tracer: Tracer | None = None,
) -> Played:
    cache = arm.cache
    if oracle is not None:
        POLICIES["oracle"] = oracle.eviction_order
        cache = replace(cache, eviction="oracle")
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
    driver = Driver(workload, simulation)
    if oracle is not None:
        oracle.listen(driver.submitted.__getitem__, simulation.engine.cache.table)
        tracer = oracle
    if tracer is not None:
        simulation.engine.tracer = tracer
        if isinstance(tracer, EngineTrace):
            tracer.engine = simulation.engine
    # What the collector looks through are millions of tokens' worth of live objects, in vain.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        driver.start()
        simulation.run()
    finally:
        POLICIES.pop("oracle", None)
        if was_enabled:
            gc.enable()
    records = driver.finish(0)
    before = driver.warm_stats or EngineStats()
    return Played(figures(records, before, simulation.stats), records)
