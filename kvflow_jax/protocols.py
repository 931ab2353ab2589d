"""What the engine acts through: a clock, a runner and transfers.

Engine, scheduler and cache never ask for the wall time or touch a device themselves. With the
implementations of ``runner`` they serve on real devices; with simulated ones the same code runs in
virtual time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kvflow_jax.batch import Batch
from kvflow_jax.models.sampler import Logprobs
from kvflow_jax.request import Request


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since an arbitrary start."""

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        """Return once ``event`` is set, or after ``timeout_s`` seconds of this clock."""


class StepHandle(Protocol):
    def result(self) -> np.ndarray:
        """Wait for the step; the sampled token of each row, i32[num_rows]."""

    def logprobs(self) -> Logprobs | None:
        """Of each row's sample, numpy; None where no row wanted any."""


class ScoreHandle(Protocol):
    def result(self) -> Logprobs:
        """Wait for the scores, numpy, one for each target."""


class Runner(Protocol):
    """Runs steps on a device, in the order they are submitted."""

    def submit(self, batch: Batch) -> StepHandle:
        """Dispatch a step and return at once."""

    def recall(self, request: Request) -> None:
        """Remember the tokens, stops and bias of a request for the slot that it now has."""

    def score(self, start: int, targets: np.ndarray) -> Sequence[ScoreHandle]:
        """Score tokens against the step submitted last.

        Args:
            start: flat token of that step that comes before the first target.
            targets: i32[n], what follows that token and each after it.
        """

    @property
    def is_intact(self) -> bool:
        """Whether the KV of earlier steps is still there; False after a step broke the pool."""

    def reset(self) -> None:
        """Start over with an empty pool."""


class Transfers(Protocol):
    """Moves blocks between host and device, beside the steps."""

    def submit(self, blocks: np.ndarray) -> None:
        """Start to bring ``blocks`` (i32[num_blocks]) to the device."""

    def poll(self) -> Sequence[np.ndarray]:
        """Blocks of the transfers that have finished since the last call; never waits."""


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        event.wait(timeout_s)
