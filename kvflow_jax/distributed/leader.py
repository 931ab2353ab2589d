"""The leader's runner: sends each call to the followers, then makes it on its own devices."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from kvflow_jax.distributed.messages import (
    Drop,
    Message,
    Read,
    Reset,
    Score,
    SetSequenceState,
    SetTokenMasks,
    Submit,
    Write,
)
from kvflow_jax.distributed.process_group import Leader
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.runner import JaxScores, JaxStep, ModelRunner
from kvflow_jax.runtime.sampler import Logprobs


class RemoteArray:
    """An array whose shards lie on all processes under one id.

    When the leader's reference is collected, the followers drop their shards.
    """

    def __init__(self, array_id: int, array: jax.Array, dropped: deque[int]) -> None:
        self.array_id = array_id
        self.array = array
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.array_id)


class RemoteArrays:
    """Assigns ids to remote arrays and sends the followers the ids that are no longer used."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._ids = itertools.count()
        self._dropped: deque[int] = deque()  # ids not yet sent; appended to by any thread

    def next_id(self) -> int:
        """Return an id that no array has had."""
        return next(self._ids)

    def add(self, array_id: int, array: jax.Array) -> RemoteArray:
        """Return the leader's handle of an array; followers drop theirs once it is collected."""
        return RemoteArray(array_id, array, self._dropped)

    def drop(self, array_id: int) -> None:
        """Drop an array that followers may have, though making it failed on the leader."""
        self._dropped.append(array_id)

    def send(self, message: Message) -> None:
        """Send the ids to drop, if any, then a message to the followers."""
        array_ids = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if array_ids:
            self._leader.send(Drop(array_ids))
        self._leader.send(message)


class LeaderStep:
    """A step dispatched on all processes. Its samples are replicated on each."""

    def __init__(self, step: JaxStep, leader: Leader) -> None:
        self._step, self._leader = step, leader

    def result(self) -> np.ndarray:
        self._leader.block_until_ready(self._step.tokens)
        return self._step.result()

    def logprobs(self) -> Logprobs[np.ndarray] | None:
        return self._step.logprobs()


class LeaderScores:
    """Scores computed by all processes."""

    def __init__(self, scores: JaxScores, leader: Leader) -> None:
        self._scores, self._leader = scores, leader

    def result(self) -> Logprobs[np.ndarray]:
        self._leader.block_until_ready(self._scores.logprobs.chosen)
        return self._scores.result()


class LeaderRunner:
    """A ``Runner`` over all processes; see ``kvflow_jax.distributed``.

    Args:
        runner: this process's runner.
    """

    def __init__(self, runner: ModelRunner, leader: Leader, remote_arrays: RemoteArrays) -> None:
        self._runner, self._leader, self._remote_arrays = runner, leader, remote_arrays

    def submit(self, batch: Batch[np.ndarray]) -> LeaderStep:
        shape_index = self._runner.shapes.shapes.index(batch.shape)
        self._remote_arrays.send(Submit(shape_index, batch.tokens, batch.ints, batch.floats))
        with self._leader.lockstep():
            return LeaderStep(self._runner.submit(batch), self._leader)

    def load_sequence_state(self, request: Request) -> None:
        sequence_state = self._runner.sequence_state(request)
        self._remote_arrays.send(SetSequenceState(vars(sequence_state)))
        with self._leader.lockstep():
            self._runner.set_sequence_state(sequence_state)

    def set_token_masks(self, mask_slots: np.ndarray, masks: np.ndarray) -> None:
        self._remote_arrays.send(SetTokenMasks(mask_slots, masks))
        with self._leader.lockstep():
            self._runner.set_token_masks(mask_slots, masks)

    def score(self, start: int, targets: np.ndarray) -> Sequence[LeaderScores]:
        self._remote_arrays.send(Score(start, targets))
        with self._leader.lockstep():
            chunks = self._runner.score(start, targets)
        return [LeaderScores(scores, self._leader) for scores in chunks]

    def read_blocks(self, pages: np.ndarray) -> RemoteArray:
        array_id = self._remote_arrays.next_id()
        self._remote_arrays.send(Read(array_id, pages))
        with self._leader.lockstep():
            return self._remote_arrays.add(array_id, self._runner.read_blocks(pages))

    def write_blocks(self, blocks: RemoteArray, indices: np.ndarray, pages: np.ndarray) -> None:
        self._remote_arrays.send(Write(blocks.array_id, indices, pages))
        with self._leader.lockstep():
            self._runner.write_blocks(blocks.array, indices, pages)

    @property
    def is_intact(self) -> bool:
        return self._runner.is_intact

    def reset(self) -> None:
        self._remote_arrays.send(Reset())
        with self._leader.lockstep():
            self._runner.reset()
