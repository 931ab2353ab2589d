"""A predictor that learns nothing: without declared graphs the cache is LRU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvflow_jax.reuse.predictor import Forecast, NextCall, Transition


class NoPredictor:
    """Forecasts nothing."""

    num_agents = num_bytes = 0

    def observe(self, history: Sequence[str], agent: str, delay_s: float) -> None:
        """Learn nothing."""

    def forecast(self, history: Sequence[str]) -> Mapping[str, Forecast]:
        return {}

    def next_calls(self, history: Sequence[str]) -> Mapping[str, NextCall]:
        return {}

    def expects(self, history: Sequence[str]) -> str | None:
        return None

    def transitions(self, max_rows: int) -> list[Transition]:
        return []

    def forget(self, agent: str) -> None:
        """There is nothing to forget."""

    def rows(self) -> Iterator[list[Any]]:
        return iter(())

    @classmethod
    def from_rows(cls, rows: Iterable[Any]) -> NoPredictor:
        return cls()
