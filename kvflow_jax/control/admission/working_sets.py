"""The working sets of readers, and the blocks in those of active readers (Denning 1968)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from kvflow_jax.control.readers import Reader
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.block_hashes import common_prefix_len

_EMPTY = np.empty(0, np.int64)


class WorkingSets:
    """The blocks that each reader reads again, with refcounts of those of active readers.

    A reader is active while an active run uses it. A working set is i64[n] hashes of the leading
    blocks of a sequence, as ``block_hashes`` computes them.
    """

    def __init__(self) -> None:
        self._hashes: dict[Reader, np.ndarray] = {}
        self._num_users: Counter[Reader] = Counter()  # active runs that use a reader
        self._refcounts: Counter[int] = Counter()  # block hash -> active readers that read it
        # Active readers that have not read since they became active.
        self._cold: set[Reader] = set()

    @property
    def num_active_blocks(self) -> int:
        """Distinct blocks that active readers read again."""
        return len(self._refcounts)

    def set(self, reader: Reader, hashes: np.ndarray) -> None:
        """Set the working set of a reader, i64[n]."""
        before = self._hashes.get(reader, _EMPTY)
        self._hashes[reader] = hashes
        if self._num_users[reader]:
            num_same = common_prefix_len(before, hashes)
            self._acquire_blocks(hashes[num_same:])
            self._release_blocks(before[num_same:])

    def remove(self, reader: Reader) -> None:
        """Forget the working set of a reader."""
        if reader in self._hashes:
            self.set(reader, _EMPTY)
            del self._hashes[reader]

    def num_recomputed(self, hashes: np.ndarray, num_cached: int, readers: Iterable[Reader]) -> int:
        """Return how many blocks of a prompt were recomputed although a reader had read them.

        A cold reader does not count: it had no chance to find its blocks. It is cold no longer.

        Args:
            hashes: i64[n], of the prompt.
            num_cached: leading blocks that were cached.
        """
        num_known = 0
        for reader in readers:
            if reader in self._cold:
                self._cold.remove(reader)
            elif reader in self._hashes:
                num_known = max(num_known, common_prefix_len(self._hashes[reader], hashes))
        return max(0, num_known - num_cached)

    def mark_all_cold(self) -> None:
        """Make all active readers cold, as the cache was emptied."""
        self._cold = {reader for reader in self._num_users if reader in self._hashes}

    def acquire(self, readers: Iterable[Reader], *, have_read: bool = False) -> None:
        """Add an active run to each reader.

        Args:
            have_read: whether readers that become active are warm.
        """
        for reader in readers:
            self._num_users[reader] += 1
            if self._num_users[reader] == 1:
                self._acquire_blocks(self._hashes.get(reader, _EMPTY))
                if reader in self._hashes and not have_read:
                    self._cold.add(reader)

    def release(self, readers: Iterable[Reader]) -> None:
        """Remove an active run from each reader."""
        for reader in readers:
            self._num_users[reader] -= 1
            if not self._num_users[reader]:
                del self._num_users[reader]
                self._cold.discard(reader)
                self._release_blocks(self._hashes.get(reader, _EMPTY))

    def num_blocks(self, readers: Iterable[Reader]) -> int:
        """Return the sum of the readers' working sets in blocks; shared blocks count for each."""
        return sum(len(self._hashes.get(reader, _EMPTY)) for reader in readers)

    def num_additional(self, readers: Iterable[Reader]) -> int:
        """Return the distinct blocks that readers read again and no active reader does."""
        hashes = {key for reader in readers for key in self._hashes.get(reader, _EMPTY).tolist()}
        return sum(key not in self._refcounts for key in hashes)

    def would_free_blocks(self, readers: Iterable[Reader]) -> bool:
        """Return whether a release of readers would lower ``num_active_blocks``."""
        inactive = (reader for reader in readers if self._num_users[reader] == 1)
        hashes = (key for reader in inactive for key in self._hashes.get(reader, _EMPTY).tolist())
        return any(self._refcounts[key] == 1 for key in hashes)

    def check_integrity(self, num_users: Counter[Reader]) -> None:
        """Raise IntegrityError unless the counts are those of ``num_users``, reader -> runs."""
        refcounts = Counter(
            key for reader in num_users for key in self._hashes.get(reader, _EMPTY).tolist()
        )
        # Compared as dicts: a Counter is compared in Python, and ignores entries that are 0.
        is_right = num_users == +self._num_users and dict(refcounts) == dict(self._refcounts)
        if not is_right:
            raise IntegrityError("refcounts of working sets are not those of the active readers")

    def _acquire_blocks(self, hashes: np.ndarray) -> None:
        self._refcounts.update(hashes.tolist())

    def _release_blocks(self, hashes: np.ndarray) -> None:
        refcounts = self._refcounts
        for key in hashes.tolist():
            if refcounts[key] == 1:
                del refcounts[key]
            else:
                refcounts[key] -= 1
