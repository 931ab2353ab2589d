"""The size of a workload, as requested by flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.workloads.base import Sizes


class ScaleError(ValueError):
    """The workload does not have the quantity that a flag scales."""


@dataclass
class Scale:
    """The requested size; None keeps the workload's default.

    Args:
        is_quick: True for a smaller workload.
        runs: number of workflow runs.
        runs_per_s: arrival rate of runs.
        prompt: tokens of fixed prefixes, dynamic suffixes and outputs.
    """

    is_quick: bool = False
    runs: int | None = None
    runs_per_s: float | None = None
    prompt: Sizes | None = None
    _used: set[str] = field(default_factory=set, init=False)

    def of(self, *, quick: int, full: int) -> int:
        """Return one of two counts, by ``is_quick`` alone."""
        return quick if self.is_quick else full

    def num_runs(self, *, quick: int, full: int) -> int:
        """Return the number of runs."""
        self._used.add("runs")
        return self.of(quick=quick, full=full) if self.runs is None else self.runs

    def rate(self, default: float) -> float:
        """Return the arrival rate, runs/s."""
        self._used.add("rate")
        return default if self.runs_per_s is None else self.runs_per_s

    def sizes(self, default: Sizes) -> Sizes:
        """Return the tokens of every call."""
        self._used.add("sizes")
        return default if self.prompt is None else self.prompt

    def check(self, name: str) -> None:
        """Raise ScaleError unless the workload just built has every quantity that was requested."""
        requested = {"runs": self.runs, "rate": self.runs_per_s, "sizes": self.prompt}
        given = {key for key, value in requested.items() if value is not None}
        if missing := sorted(given - self._used):
            usable = ", ".join(f"--{flag}" for flag in sorted(self._used)) or "none"
            raise ScaleError(
                f"workload {name} cannot be scaled by --{missing[0]}; it can by: {usable}"
            )
