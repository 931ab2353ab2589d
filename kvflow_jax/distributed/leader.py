"""The runner of the process that decides: tells the others what it does, then does it."""

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
    Submit,
    Write,
)
from kvflow_jax.distributed.process_group import Leader
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.runner import JaxScores, JaxStep, ModelRunner
from kvflow_jax.runtime.sampler import Logprobs


class RemoteArray:
    """An array of which every process keeps its own part, all under one number."""

    def __init__(self, number: int, array: jax.Array, dropped: deque[int]) -> None:
        self.number = number
        self.array = array
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.number)


class RemoteArrays:
    """Numbers what processes keep, and tells them what nobody refers to any more."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()

    def next_number(self) -> int:
        return next(self._numbers)

    def keep(self, number: int, array: jax.Array) -> RemoteArray:
        return RemoteArray(number, array, self._dropped)

    def forget(self, number: int) -> None:
        """What this process could not make, others may keep."""
        self._dropped.append(number)

    def tell(self, message: Message) -> None:
        """Send a message to the followers, and before it what they may drop."""
        numbers = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if numbers:
            self._leader.send(Drop(numbers))
        self._leader.send(message)


class LeaderStep:
    """A step of all processes; its samples are whole on each."""

    def __init__(self, step: JaxStep, leader: Leader) -> None:
        self._step, self._leader = step, leader

    def result(self) -> np.ndarray:
        self._leader.block_until_ready(self._step.tokens)
        return self._step.result()

    def logprobs(self) -> Logprobs | None:
        return self._step.logprobs()


class LeaderScores:
    def __init__(self, scores: JaxScores, leader: Leader) -> None:
        self._scores, self._leader = scores, leader

    def result(self) -> Logprobs:
        self._leader.block_until_ready(self._scores.logprobs.chosen)
        return self._scores.result()


class LeaderRunner:
    """A ``Runner`` over all processes; see ``kvflow_jax.distributed``.

    Args:
        runner: this process's.
    """

    def __init__(self, runner: ModelRunner, leader: Leader, remote_arrays: RemoteArrays) -> None:
        self._runner, self._leader, self._remote_arrays = runner, leader, remote_arrays

    def submit(self, batch: Batch) -> LeaderStep:
        shape = self._runner.shapes.shapes.index(batch.shape)
        self._remote_arrays.tell(Submit(shape, batch.tokens, batch.ints, batch.floats))
        with self._leader.lockstep():
            return LeaderStep(self._runner.submit(batch), self._leader)

    def load_sequence_state(self, request: Request) -> None:
        sequence_state = self._runner.past(request)
        self._remote_arrays.tell(SetSequenceState(vars(sequence_state)))
        with self._leader.lockstep():
            self._runner.set_sequence_state(sequence_state)

    def score(self, start: int, targets: np.ndarray) -> Sequence[LeaderScores]:
        self._remote_arrays.tell(Score(start, targets))
        with self._leader.lockstep():
            scores = self._runner.score(start, targets)
        return [LeaderScores(some, self._leader) for some in scores]

    def read_blocks(self, pages: np.ndarray) -> RemoteArray:
        number = self._remote_arrays.next_number()
        self._remote_arrays.tell(Read(number, pages))
        with self._leader.lockstep():
            return self._remote_arrays.keep(number, self._runner.read_blocks(pages))

    def write_blocks(self, blocks: RemoteArray, indices: np.ndarray, pages: np.ndarray) -> None:
        self._remote_arrays.tell(Write(blocks.number, indices, pages))
        with self._leader.lockstep():
            self._runner.write_blocks(blocks.array, indices, pages)

    @property
    def is_intact(self) -> bool:
        return self._runner.is_intact

    def reset(self) -> None:
        self._remote_arrays.tell(Reset())
        with self._leader.lockstep():
            self._runner.reset()
