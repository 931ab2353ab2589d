"""Interfaces through which the engine acts: a clock, a runner and transfers.

Engine, scheduler and cache never read the wall time and never touch a device themselves. With
``WallClock``, ``ModelRunner`` and ``DeviceTransfers`` they serve on devices; with those of
``kvflow_jax.sim`` the same code runs in virtual time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.sampler import Logprobs


class Clock(Protocol):
    """Source of time for the engine."""

    def now(self) -> float:
        """Return the seconds since an arbitrary start."""
        ...

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        """Return once ``event`` is set, or after ``timeout_s`` seconds of this clock."""
        ...


class StepHandle(Protocol):
    """A dispatched step."""

    def result(self) -> np.ndarray:
        """Wait for the step; return the sampled token of each row, i32[num_rows].

        If each row has sampled several tokens in sequence, i32[num_tokens, num_rows].
        """
        ...

    def logprobs(self) -> Logprobs[np.ndarray] | None:
        """Return the logprobs of each row's sample, numpy; None if no row wanted any."""
        ...


class ScoreHandle(Protocol):
    """Dispatched scores of prompt tokens."""

    def result(self) -> Logprobs[np.ndarray]:
        """Wait for the scores; return them, numpy, one for each target."""
        ...


class Runner(Protocol):
    """Runs steps on a device, in the order of their submission."""

    def submit(self, batch: Batch[np.ndarray]) -> StepHandle:
        """Dispatch a step and return at once."""
        ...

    def load_sequence_state(self, request: Request) -> None:
        """Load a request's tokens, stop tokens and logit bias into the state of its seq_slot."""
        ...

    def set_token_masks(self, mask_slots: np.ndarray, masks: np.ndarray) -> None:
        """Set which tokens the grammars of requests allow next.

        Args:
            mask_slots: i32[num_masks], seq_slots of requests, or ``BatchShapes.draft_mask_slots``.
            masks: i32[num_masks, ceil(vocab_size / 32)]; see ``Matcher.mask``.
        """
        ...

    def score(self, start: int, targets: np.ndarray) -> Sequence[ScoreHandle]:
        """Dispatch the logprobs of given tokens under the step submitted last.

        Args:
            start: index among that step's flat tokens of the token before the first target.
            targets: i32[num_targets], the tokens that follow that token and its successors.

        Returns:
            Handles for consecutive chunks of the targets.
        """
        ...

    def read_blocks(self, pages: np.ndarray) -> Any:
        """Dispatch a copy of pages (i32[n]) out of the pool; later steps may overwrite them."""
        ...

    def write_blocks(self, blocks: Any, indices: np.ndarray, pages: np.ndarray) -> None:
        """Dispatch a copy into the pool.

        Args:
            blocks: result of ``read_blocks`` for n blocks, possibly offloaded and loaded since.
            indices: i32[m], indices within ``blocks`` of the blocks to write.
            pages: i32[m], the page for each of them.
        """
        ...

    @property
    def is_intact(self) -> bool:
        """True unless a failed step has lost the pool, and the KV of earlier steps with it."""
        ...

    def reset(self) -> None:
        """Start over with an empty pool."""
        ...


class Transfers(Protocol):
    """Copies extents between host and device beside the steps, in order in each direction."""

    @property
    def bytes_per_s(self) -> Mapping[Direction, float]:
        """Bandwidth of each direction, as known at the start."""
        ...

    def submit(self, transfer: Transfer) -> None:
        """Queue a transfer behind those of its direction."""
        ...

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Return once the copy is enqueued on the device, or after ``timeout_s`` seconds."""
        ...

    def poll(self) -> Sequence[Transfer]:
        """Return the transfers that are done or have failed since the last call; never wait."""
        ...

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` whenever a transfer is done or has failed, from any thread."""
        ...

    def close(self) -> None:
        """Stop copying and release the threads."""
        ...


class NoTransfers:
    """``Transfers`` of an engine without a host tier."""

    bytes_per_s = dict.fromkeys(Direction, 1.0)

    def submit(self, transfer: Transfer) -> None:
        raise IntegrityError("a transfer was submitted, but there is no host tier")

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None: ...

    def poll(self) -> Sequence[Transfer]:
        return ()

    def listen(self, notify: Callable[[], object]) -> None: ...

    def close(self) -> None: ...


class WallClock:
    """The monotonic clock of the operating system."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        event.wait(timeout_s)
