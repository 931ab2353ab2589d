"""How large a workload is to be, where somebody says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.workloads.base import Sizes


class ScaleError(ValueError):
    """A workload has nothing of what was to be scaled."""


@dataclass
class Scale:
    """What was asked for; None leaves a workload as it is.

    Args:
        is_quick: a smaller one.
        runs: how many runs.
        runs_per_s: at which they arrive.
        prompt: tokens of fixed prefixes, dynamic parts and answers.
    """

    is_quick: bool = False
    runs: int | None = None
    runs_per_s: float | None = None
    prompt: Sizes | None = None
    _used: set[str] = field(default_factory=set, init=False)

    def of(self, *, quick: int, whole: int) -> int:
        """One of two counts, which nobody but ``is_quick`` decides."""
        return quick if self.is_quick else whole

    def num_runs(self, *, quick: int, whole: int) -> int:
        """How many runs there are to be."""
        self._used.add("runs")
        return self.of(quick=quick, whole=whole) if self.runs is None else self.runs

    def rate(self, default: float) -> float:
        """Runs a second."""
        self._used.add("rate")
        return default if self.runs_per_s is None else self.runs_per_s

    def sizes(self, default: Sizes) -> Sizes:
        """Tokens of every call."""
        self._used.add("sizes")
        return default if self.prompt is None else self.prompt

    def check(self, name: str) -> None:
        """Raise ScaleError unless the workload that was built had all that was asked for."""
        asked = {"runs": self.runs, "rate": self.runs_per_s, "sizes": self.prompt}
        given = {key for key, value in asked.items() if value is not None}
        if missing := sorted(given - self._used):
            has = ", ".join(f"--{one}" for one in sorted(self._used)) or "none of them"
            raise ScaleError(f"{name} has no --{missing[0]}; it has: {has}")
