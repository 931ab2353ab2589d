"""What the engine acts through: a clock, a runner and transfers.

Engine, scheduler and cache never ask for the wall time or touch a device themselves. With the
implementations of ``runner`` they serve on real devices; with simulated ones the same code runs in
virtual time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.sampler import Logprobs


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

    def load_sequence_state(self, request: Request) -> None:
        """Remember the tokens, stops and bias of a request for the slot that it now has."""

    def score(self, start: int, targets: np.ndarray) -> Sequence[ScoreHandle]:
        """Score tokens against the step submitted last.

        Args:
            start: flat token of that step that comes before the first target.
            targets: i32[n], what follows that token and each after it.
        """

    def read_blocks(self, pages: np.ndarray) -> Any:
        """Dispatch a copy of blocks (pages i32[n]) out of the pool; later steps may reuse them."""

    def write_blocks(self, blocks: Any, indices: np.ndarray, pages: np.ndarray) -> None:
        """Dispatch a copy into the pool.

        Args:
            blocks: what ``read_blocks`` gave, of n blocks, wherever it has been since.
            indices: i32[m], which of them to write; the rest is ignored.
            pages: i32[m], where to.
        """

    @property
    def is_intact(self) -> bool:
        """Whether the KV of earlier steps is still there; False after a step broke the pool."""

    def reset(self) -> None:
        """Start over with an empty pool."""


@runtime_checkable
class MultiStepRunner(Protocol):
    """What a runner adds that runs a decode step several times as one, each row going on from its
    sample."""

    def num_repeats(self, batch: Batch, most: int) -> int:
        """How often the batch may be run, 1 to ``most``, before anything else is due."""

    def submit_repeated(self, batch: Batch, num_repeats: int) -> StepHandle:
        """Dispatch so many steps and return at once; the result is i32[num_repeats, num_rows]."""


class Transfers(Protocol):
    """Copies extents between host and device, beside the steps; in order in each direction."""

    @property
    def bytes_per_s(self) -> Mapping[Direction, float]:
        """Of each direction, as far as it is known at the start."""

    def submit(self, transfer: Transfer) -> None:
        """Begin to copy, once those before it in its direction are done."""

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Return once the device knows of the transfer, or after ``timeout_s`` seconds."""

    def poll(self) -> Sequence[Transfer]:
        """Those that have finished since the last call, copied or failed; never waits."""

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` whenever one has finished; from any thread."""

    def close(self) -> None: ...


class NoTransfers:
    """For engines without a host tier."""

    bytes_per_s = dict.fromkeys(Direction, 1.0)

    def submit(self, transfer: Transfer) -> None:
        raise IntegrityError("there is no host tier to move blocks to or from")

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None: ...

    def poll(self) -> Sequence[Transfer]:
        return ()

    def listen(self, notify: Callable[[], object]) -> None: ...

    def close(self) -> None: ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        event.wait(timeout_s)
