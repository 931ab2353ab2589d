"""The arms: hierarchical caching, KVFlow with declared graphs, and KVFlow without a hint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from experiments.compare.arms import ARMS
from experiments.compare.call_hints import nothing
from experiments.compare.driver import CallRecord
from experiments.compare.run_cell import CellResult, EngineTrace, Setting, run_cell
from experiments.workloads.base import Workload
from kvflow_jax.requests.request import Request

HICACHE, DECLARED, ZERO = "hicache", "declared", "zero hints"
_ARMS = {
    HICACHE: ARMS["hicache"],
    DECLARED: ARMS["kvflow-guard"],
    ZERO: replace(ARMS["kvflow-guard"], hints_of=nothing),
}
# Calls of each tenant after which its order is learned, and how it is named in the figures.
WINDOWS = {"50": (51, 150), "200": (201, 300)}
MIN_GAIN = 0.05  # of a declared graph, for its share to tell something


@dataclass(frozen=True)
class WindowSums:
    """Sums over the calls of a window, by arm.

    Attributes:
        latency_s: of the calls.
        num_computed: prompt tokens.
        num_calls: calls of the window.
    """

    latency_s: dict[str, float]
    num_computed: dict[str, int]
    num_calls: int

    @property
    def gain(self) -> float:
        """Time that a declared graph saves, as a part of that of hierarchical caching."""
        base = self.latency_s[HICACHE]
        return (base - self.latency_s[DECLARED]) / base if base else 0.0

    @property
    def share(self) -> float:
        """Share of that gain without hints."""
        base = self.latency_s[HICACHE]
        saved = base - self.latency_s[DECLARED]
        return (base - self.latency_s[ZERO]) / saved if saved else 0.0

    def __add__(self, other: WindowSums) -> WindowSums:
        def added(own: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
            return {arm: own[arm] + others[arm] for arm in own}

        return WindowSums(
            added(self.latency_s, other.latency_s),
            added(self.num_computed, other.num_computed),
            self.num_calls + other.num_calls,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class PredictionTrace(EngineTrace):
    """Counts what was predicted rightly, call by call.

    Attributes:
        right: for each call that ended, predictions so far that were right.
        known: for each, calls so far whose agent was known.
    """

    def __init__(self) -> None:
        self.right: list[int] = []
        self.known: list[int] = []

    def on_finish(self, request: Request, now: float) -> None:
        counts = self.engine.controller.learned_order.num_predictions
        self.right.append(counts["right"])
        self.known.append(sum(counts.values()))

    def share_right(self, first: int, last: int) -> float | None:
        """Return the share of calls ``first`` to ``last`` that was predicted, None without any."""
        inside = [i for i, known in enumerate(self.known) if first <= known <= last]
        if len(inside) < 2:
            return None
        begin, end = inside[0], inside[-1]
        known = self.known[end] - self.known[begin]
        return (self.right[end] - self.right[begin]) / known if known else None


def run_arm(
    arm: str, setting: Setting, workload: Workload, tracer: EngineTrace | None = None
) -> CellResult:
    """Run a workload under an arm in virtual time."""
    return run_cell(setting, workload, _ARMS[arm], tracer)


def window_sums(results: Mapping[str, CellResult], first: int, last: int) -> WindowSums:
    """Return sums over the same calls under each arm: those that began ``first`` to ``last``.

    They are counted for each tenant, in the order of the arm without hints: it has then learned
    from the calls before them.
    """
    inside = set(_numbered(results[ZERO].records, first, last))
    latency_s, num_computed = {}, {}
    for arm, result in results.items():
        records = [record for record in result.records if _key(record) in inside]
        latency_s[arm] = sum(record.latency_s for record in records)
        num_computed[arm] = sum(record.num_computed for record in records)
    return WindowSums(latency_s, num_computed, len(inside))


def _numbered(
    records: Iterable[CallRecord], first: int, last: int
) -> Iterable[tuple[str, str, int]]:
    begun: dict[str, int] = {}
    for record in sorted(records, key=lambda r: (r.start_s, r.workflow_id, r.number)):
        number = begun[record.tenant] = begun.get(record.tenant, 0) + 1
        if first <= number <= last:
            yield _key(record)


def _key(record: CallRecord) -> tuple[str, str, int]:
    return record.tenant, record.workflow_id, record.number
