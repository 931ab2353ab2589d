"""What every process but the first does: the same as the leader, in its order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax

from kvflow_jax.cache.shard_copy import copy_shards
from kvflow_jax.distributed.messages import (
    Copied,
    Copy,
    Drop,
    Message,
    Read,
    Reset,
    Score,
    SetSequenceState,
    Submit,
    Write,
)
from kvflow_jax.distributed.process_group import Follower
from kvflow_jax.errors import IntegrityError
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.runner import ModelRunner
from kvflow_jax.runtime.sampler import SequenceState

_WAITERS = 8  # as many copies as the leader has under way


class Replay:
    """Does what the leader says it does.

    Args:
        runner: this process's, warm.
    """

    def __init__(self, runner: ModelRunner, follower: Follower) -> None:
        self._runner, self._follower = runner, follower
        self._kept: dict[int, jax.Array] = {}  # blocks on the device and on the host, by number
        self._waiters = ThreadPoolExecutor(_WAITERS, thread_name_prefix="kvflow-copy")

    def run(self) -> None:
        """Until the leader closes.

        Raises:
            Exception: this process cannot do what the leader does.
        """
        for message in self._follower.messages():
            self._do(message)
        self._waiters.shutdown()

    def _do(self, message: Message) -> None:
        runner = self._runner
        match message:
            case Submit(shape, tokens, ints, floats):
                runner.submit(Batch(runner.shapes.shapes[shape], tokens, ints, floats))
            case SetSequenceState(sequence_state):
                runner.set_sequence_state(SequenceState(**sequence_state))
            case Score(start, targets):
                runner.score(start, targets)
            case Read(number, pages):
                self._kept[number] = runner.read_blocks(pages)
            case Write(number, indices, pages):
                runner.write_blocks(self._kept[number], indices, pages)
            case Copy(number, source, to_host):
                self._copy(number, source, to_host)
            case Drop(numbers):
                for number in numbers:
                    self._kept.pop(number, None)  # a copy that failed was never kept
            case Reset():
                runner.reset()
            case _:
                raise IntegrityError(f"unexpected: {message}")

    def _copy(self, number: int, source: int, to_host: bool) -> None:
        try:
            self._kept[number] = copy_shards(self._kept[source], to_host=to_host)
        except Exception as error:  # the leader counts it, and the blocks are computed again
            self._follower.send(Copied(number, repr(error)))
            return
        self._waiters.submit(self._answer, number, self._kept[number])

    def _answer(self, number: int, copy: jax.Array) -> None:
        why = ""
        try:
            copy.block_until_ready()
        except Exception as error:
            why = repr(error)
        self._follower.send(Copied(number, why))
