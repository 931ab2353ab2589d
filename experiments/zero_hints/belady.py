"""The most hits that any replacement could have: Belady's, computed offline.

Of a known sequence of calls, the block whose next reader is furthest away is evicted (Belady 1966).
Readers of a block read all blocks before it, so that of blocks with the same next reader the
deepest goes first, and a prompt is never left with a hole.

That bounds from above the hits of a cache of this capacity, whatever it evicts, for this sequence:
a block can be hit from the moment when its call begins, a call needs no room for itself, and no
block is in two tiers at once. Under another order of calls there may be more hits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.workloads.base import Run

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Access:
    """The blocks of a call.

    Attributes:
        blocks: full blocks of prompt and answer, i64[num_blocks]. Blocks are equal if all tokens up
            to their ends are.
        num_read: blocks at the start that may be hit: at least one prompt token is computed.
    """

    blocks: np.ndarray
    num_read: int


def accesses(calls: Iterable[tuple[Run, int]], page_size: int) -> list[Access]:
    """Return the blocks of calls, given as a run and the number of one of its calls."""
    ids: dict[tuple[int, bytes], int] = {}
    answers: dict[tuple[Run, int], np.ndarray] = {}

    def answer(run: Run, number: int) -> np.ndarray:
        # The tokens are not known, and equal to no others.
        return answers.setdefault(
            (run, number),
            np.full(run.calls[number].num_output, -1 - len(answers), np.int32),
        )

    found = []
    for run, number in calls:
        parts = [answer(run, p) if isinstance(p, int) else p for p in run.calls[number].parts]
        num_prompt = sum(map(len, parts))
        data = np.concatenate([*parts, answer(run, number)]).astype(np.int32)
        # The last token of an answer is not in the cache: nothing was computed from it.
        num_blocks = (len(data) - 1) // page_size
        blocks = np.empty(num_blocks, np.int64)
        block, raw, size = -1, data.tobytes(), data.itemsize * page_size
        for index in range(num_blocks):
            key = block, raw[index * size : (index + 1) * size]
            block = blocks[index] = ids.setdefault(key, len(ids))
        found.append(Access(blocks, (num_prompt - 1) // page_size))
    return found


def belady_hits(sequence: Sequence[Access], capacity: int) -> list[int]:
    """Return the blocks that each access hits.

    Args:
        capacity: blocks of all tiers together.
    """
    hits = []
    # Resident blocks by their next reader: those of its prompt from a first to before a last.
    # Blocks before the first have an earlier reader, which keeps them for this one, too.
    resident: dict[int, tuple[int, int]] = {}
    furthest: list[int] = []  # heap of the readers in ``resident``, negative
    num_resident = 0
    for number, nexts in enumerate(_next_readers(sequence)):
        first, last = resident.pop(number, (0, 0))
        num_resident -= last - first
        hits.append(last)
        for reader, first, last in nexts:
            if reader in resident:
                old_first, old_last = resident[reader]
                num_resident -= old_last - old_first
                last = max(last, old_last)
            else:
                heapq.heappush(furthest, -reader)
            resident[reader] = first, last
            num_resident += last - first
        while num_resident > capacity:
            reader = -furthest[0]
            first, last = resident[reader]
            num_evicted = min(last - first, num_resident - capacity)
            num_resident -= num_evicted
            if num_evicted < last - first:
                resident[reader] = first, last - num_evicted
            else:
                del resident[reader]
                heapq.heappop(furthest)
    return hits


def _next_readers(sequence: Sequence[Access]) -> list[list[tuple[int, int, int]]]:
    """Return for each access the later ones that read its blocks next.

    Returns:
        For each: number of the reader, first of the blocks, and the one after their last.
    """
    num_ids = max((int(one.blocks.max(initial=-1)) for one in sequence), default=-1) + 1
    next_reader = np.full(num_ids, _NEVER, np.int64)
    found: list[list[tuple[int, int, int]]] = []
    for number in range(len(sequence) - 1, -1, -1):
        access = sequence[number]
        readers = next_reader[access.blocks]  # never decreases: readers are prefixes
        starts = np.flatnonzero(np.diff(readers, prepend=-1))
        ends = [*starts[1:].tolist(), len(readers)]
        found.append(
            [
                (reader, first, last)
                for reader, first, last in zip(
                    readers[starts].tolist(), starts.tolist(), ends, strict=True
                )
                if reader != _NEVER
            ]
        )
        next_reader[access.blocks[: access.num_read]] = number
    return found[::-1]
