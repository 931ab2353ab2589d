"""What readers read again, and how much of it those in use read together (Denning 1968)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.block_hashes import num_common

_NO_KEYS = np.empty(0, np.int64)


class WorkingSets:
    """Keys i64[n] by reader, as ``block_hashes`` has them, and counts of those of readers in use."""

    def __init__(self) -> None:
        self._reads: dict[Hashable, np.ndarray] = {}
        self._users: Counter[Hashable] = Counter()  # of each reader
        self._held: Counter[int] = Counter()  # keys, by how many readers in use read them
        self._cold: set[Hashable] = set()  # readers in use that have not read since they were

    @property
    def num_held(self) -> int:
        """Different blocks that readers in use read again."""
        return len(self._held)

    def reads(self, reader: Hashable, keys: np.ndarray) -> None:
        """What an reader reads again."""
        before = self._reads.get(reader, _NO_KEYS)
        self._reads[reader] = keys
        if self._users[reader]:
            same = num_common(before, keys)
            self._hold(keys[same:])
            self._let_go(before[same:])

    def forget(self, reader: Hashable) -> None:
        """An reader reads nothing again."""
        if reader in self._reads:
            self.reads(reader, _NO_KEYS)
            del self._reads[reader]

    def num_lost(self, keys: np.ndarray, num_found: int, readers: Iterable[Hashable]) -> int:
        """Blocks of a prompt that were computed although one of its readers had read them before.

        Not of readers that read for the first time since they are in use: they had no chance.

        Args:
            num_found: of its blocks, that were there.
        """
        num_known = 0
        for reader in readers:
            if reader in self._cold:
                self._cold.remove(reader)
            elif reader in self._reads:
                num_known = max(num_known, num_common(self._reads[reader], keys))
        return max(0, num_known - num_found)

    def lose_all(self) -> None:
        """The cache is empty; whoever reads next had no chance to find anything."""
        self._cold = {reader for reader in self._users if reader in self._reads}

    def use(self, readers: Iterable[Hashable], *, have_read: bool = False) -> None:
        """Owners are in use, once more each."""
        for reader in readers:
            self._users[reader] += 1
            if self._users[reader] == 1:
                self._hold(self._reads.get(reader, _NO_KEYS))
                if reader in self._reads and not have_read:
                    self._cold.add(reader)

    def leave(self, readers: Iterable[Hashable]) -> None:
        """Owners are in use, once less each."""
        for reader in readers:
            self._users[reader] -= 1
            if not self._users[reader]:
                del self._users[reader]
                self._cold.discard(reader)
                self._let_go(self._reads.get(reader, _NO_KEYS))

    def num_read(self, readers: Iterable[Hashable]) -> int:
        """Blocks that readers read again, counted for each."""
        return sum(len(self._reads.get(reader, _NO_KEYS)) for reader in readers)

    def num_more(self, readers: Iterable[Hashable]) -> int:
        """Different blocks that readers read again and nobody in use does."""
        keys = {key for one in readers for key in self._reads.get(one, _NO_KEYS).tolist()}
        return sum(key not in self._held for key in keys)

    def are_needed(self, readers: Iterable[Hashable]) -> bool:
        """Whether less would be held, were readers in use once less each."""
        alone = (reader for reader in readers if self._users[reader] == 1)
        keys = (key for one in alone for key in self._reads.get(one, _NO_KEYS).tolist())
        return any(self._held[key] == 1 for key in keys)

    def check_integrity(self, users: Counter[Hashable]) -> None:
        """Raise IntegrityError unless these are the users of each reader, and that is held."""
        held = Counter(key for o in users for key in self._reads.get(o, _NO_KEYS).tolist())
        if users != +self._users or held != self._held:
            raise IntegrityError("blocks are counted that nobody in use reads")

    def _hold(self, keys: np.ndarray) -> None:
        self._held.update(keys.tolist())

    def _let_go(self, keys: np.ndarray) -> None:
        held = self._held
        for key in keys.tolist():
            if held[key] == 1:
                del held[key]
            else:
                held[key] -= 1
