"""A simulated runner, whose steps only take virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.interfaces import Runner, StepHandle
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.profile import ModelShape, Profile


class FastForwardRunner(Runner, Protocol):
    """A runner that can run several decode steps as one: each row continues from its sample."""

    def num_repeats(self, batch: Batch[np.ndarray], max_repeats: int) -> int:
        """Return how often the batch may run, 1 to ``max_repeats``, before another event is due."""
        ...

    def submit_repeated(self, batch: Batch[np.ndarray], num_repeats: int) -> StepHandle:
        """Dispatch the steps and return at once; the result is i32[num_repeats, num_rows]."""
        ...


@dataclass(frozen=True, slots=True)
class SimBlocks:
    """Stand-in for the KV of blocks, which the device has copied by ``ready_s``."""

    num_blocks: int
    ready_s: float


class SimStep:
    """A simulated step, which ends at ``end_s``."""

    def __init__(self, clock: VirtualClock, end_s: float, tokens: np.ndarray) -> None:
        self._clock, self._end_s, self._tokens = clock, end_s, tokens

    def result(self) -> np.ndarray:
        self._clock.advance_to(self._end_s)
        return self._tokens

    def logprobs(self) -> None:
        return None


class SimScores:
    """Simulated scores: zeros."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def result(self) -> Logprobs[np.ndarray]:
        num = self._num_tokens
        zeros, ids = np.zeros((num, 1), np.float32), np.zeros((num, 1), np.int32)
        return Logprobs(chosen=zeros[:, 0], top_ids=ids, top=zeros)


_ODD = 0x9E3779B97F4A7C15  # spreads the bits of a hash


class SimRunner:
    """Runs steps in sequence for the time that the profile predicts.

    Host time overlaps with the device. Tokens are a hash of the request's seed and their position:
    the same simulation gives the same tokens, and no two requests have the same answer.

    Attributes:
        busy_s: seconds in which the device was busy.
    """

    is_intact = True

    def __init__(
        self, clock: VirtualClock, profile: Profile, shape: ModelShape, block_bytes: int
    ) -> None:
        self.busy_s = 0.0
        self._clock = clock
        self._profile = profile
        self._shape = shape
        self._block_bytes = block_bytes
        self._free_s = 0.0  # when the device will have finished all submitted work

    def submit(self, batch: Batch[np.ndarray]) -> SimStep:
        self._clock.advance(self._profile.host_s)
        end_s = self._occupy(self._profile.step_s(self._shape, batch))
        return SimStep(self._clock, end_s, self._tokens(batch, 0))

    def num_repeats(self, batch: Batch[np.ndarray], max_repeats: int) -> int:
        """Return how often the batch can run before the clock's next event."""
        event_s = self._clock.next_event_s
        if event_s is None:
            return max_repeats
        left_s = event_s - max(self._free_s, self._clock.now() + self._profile.host_s)
        return min(max_repeats, max(1, int(left_s / self._repeat_s(batch, 1))))

    def submit_repeated(self, batch: Batch[np.ndarray], num_repeats: int) -> SimStep:
        self._clock.advance(self._profile.host_s)
        end_s = self._occupy(num_repeats * self._repeat_s(batch, num_repeats))
        steps = [self._tokens(batch, i) for i in range(num_repeats)]
        return SimStep(self._clock, end_s, np.stack(steps))

    def load_sequence_state(self, request: Request) -> None:
        """Do nothing: simulated tokens depend on no state."""

    def set_token_masks(self, mask_slots: np.ndarray, masks: np.ndarray) -> None:
        """Do nothing: simulated tokens follow no grammar."""

    def score(self, start: int, targets: np.ndarray) -> Sequence[SimScores]:
        num = len(targets)
        starts = range(0, num, SCORE_CHUNK_LEN)
        return [SimScores(min(SCORE_CHUNK_LEN, num - first)) for first in starts]

    def read_blocks(self, pages: np.ndarray) -> SimBlocks:
        num_blocks = len(pages)
        return SimBlocks(num_blocks, self._occupy(self._copy_s(num_blocks)))

    def write_blocks(self, blocks: SimBlocks, indices: np.ndarray, pages: np.ndarray) -> None:
        self._occupy(self._copy_s(len(indices)))

    def reset(self) -> None:
        """Do nothing: there is no pool."""

    def _tokens(self, batch: Batch[np.ndarray], num_before: int) -> np.ndarray:
        """Return the samples of a batch after ``num_before`` repeats, i32[num_rows]."""
        seed = batch.sampling.seed.astype(np.uint64)
        position = (batch.query_start + batch.query_len + num_before).astype(np.uint64)
        mixed = (seed[:, 0] << np.uint64(32) | seed[:, 1]) + position * np.uint64(_ODD)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(_ODD)
        tokens: np.ndarray = (mixed >> np.uint64(33)) % np.uint64(self._shape.vocab_size)
        return tokens.astype(np.int32)

    def _repeat_s(self, batch: Batch[np.ndarray], num_repeats: int) -> float:
        """Return the mean seconds of a repeated step: those of the step in the middle.

        The host plans each step while the previous one runs, and delays the device if it is slower.
        """
        middle = replace(batch, ints=batch.ints.copy())
        middle.query_start[middle.query_len > 0] += num_repeats // 2
        return max(self._profile.step_s(self._shape, middle), self._profile.host_s)

    def _copy_s(self, num_blocks: int) -> float:
        return self._profile.copy_s(num_blocks * self._block_bytes)

    def _occupy(self, seconds: float) -> float:
        """Add work to the device's queue; return when it will be done."""
        self._free_s = max(self._free_s, self._clock.now()) + seconds
        self.busy_s += seconds
        return self._free_s
