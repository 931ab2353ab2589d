"""Replay of the leader's calls by a follower, in the leader's order."""

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
    SetTokenMasks,
    Submit,
    Write,
)
from kvflow_jax.distributed.process_group import Follower
from kvflow_jax.errors import IntegrityError
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.runner import ModelRunner
from kvflow_jax.runtime.sampler import SequenceState

_NUM_WAITERS = 8  # threads: the leader has at most this many copies in flight


class Replay:
    """Repeats each call of the leader's runner and transfers on this process's devices.

    Args:
        runner: this process's runner, warmed up.
    """

    def __init__(self, runner: ModelRunner, follower: Follower) -> None:
        self._runner, self._follower = runner, follower
        self._arrays: dict[int, jax.Array] = {}  # this process's shards, on device or host, by id
        self._waiters = ThreadPoolExecutor(_NUM_WAITERS, thread_name_prefix="kvflow-copy")

    def run(self) -> None:
        """Replay messages until the leader closes the group.

        Raises:
            Exception: a call failed here, so this process is out of lockstep with the leader.
        """
        for message in self._follower.messages():
            self._replay(message)
        self._waiters.shutdown()

    def _replay(self, message: Message) -> None:
        runner = self._runner
        match message:
            case Submit(shape_index, tokens, ints, floats):
                runner.submit(Batch(runner.shapes.shapes[shape_index], tokens, ints, floats))
            case SetSequenceState(sequence_state):
                runner.set_sequence_state(SequenceState(**sequence_state))
            case SetTokenMasks(mask_slots, masks):
                runner.set_token_masks(mask_slots, masks)
            case Score(start, targets):
                runner.score(start, targets)
            case Read(array_id, pages):
                self._arrays[array_id] = runner.read_blocks(pages)
            case Write(array_id, indices, pages):
                runner.write_blocks(self._arrays[array_id], indices, pages)
            case Copy(array_id, source_id, to_host):
                self._copy(array_id, source_id, to_host)
            case Drop(array_ids):
                for array_id in array_ids:
                    # A copy that failed here has no array.
                    self._arrays.pop(array_id, None)
            case Reset():
                runner.reset()
            case _:
                raise IntegrityError(f"unexpected message: {message}")

    def _copy(self, array_id: int, source_id: int, to_host: bool) -> None:
        try:
            self._arrays[array_id] = copy_shards(self._arrays[source_id], to_host=to_host)
        except Exception as error:  # the leader counts the failure; the blocks are recomputed
            self._follower.send(Copied(array_id, repr(error)))
            return
        self._waiters.submit(self._report_copied, array_id, self._arrays[array_id])

    def _report_copied(self, array_id: int, copy: jax.Array) -> None:
        reason = ""
        try:
            copy.block_until_ready()
        except Exception as error:
            reason = repr(error)
        self._follower.send(Copied(array_id, reason))
