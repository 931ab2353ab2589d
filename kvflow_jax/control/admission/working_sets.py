"""What owners read again, and how much of it those in use read together (Denning 1968)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.block_hashes import num_common

_NO_KEYS = np.empty(0, np.int64)


class WorkingSets:
    """Keys i64[n] by owner, as ``block_keys`` has them, and counts of those of owners in use."""

    def __init__(self) -> None:
        self._reads: dict[Hashable, np.ndarray] = {}
        self._users: Counter[Hashable] = Counter()  # of each owner
        self._held: Counter[int] = Counter()  # keys, by how many owners in use read them
        self._cold: set[Hashable] = set()  # owners in use that have not read since they were

    @property
    def num_held(self) -> int:
        """Different blocks that owners in use read again."""
        return len(self._held)

    def reads(self, owner: Hashable, keys: np.ndarray) -> None:
        """What an owner reads again."""
        before = self._reads.get(owner, _NO_KEYS)
        self._reads[owner] = keys
        if self._users[owner]:
            same = num_common(before, keys)
            self._hold(keys[same:])
            self._let_go(before[same:])

    def forget(self, owner: Hashable) -> None:
        """An owner reads nothing again."""
        if owner in self._reads:
            self.reads(owner, _NO_KEYS)
            del self._reads[owner]

    def num_lost(self, keys: np.ndarray, num_found: int, owners: Iterable[Hashable]) -> int:
        """Blocks of a prompt that were computed although one of its owners had read them before.

        Not of owners that read for the first time since they are in use: they had no chance.

        Args:
            num_found: of its blocks, that were there.
        """
        num_known = 0
        for owner in owners:
            if owner in self._cold:
                self._cold.remove(owner)
            elif owner in self._reads:
                num_known = max(num_known, num_common(self._reads[owner], keys))
        return max(0, num_known - num_found)

    def lose_all(self) -> None:
        """The cache is empty; whoever reads next had no chance to find anything."""
        self._cold = {owner for owner in self._users if owner in self._reads}

    def use(self, owners: Iterable[Hashable], *, have_read: bool = False) -> None:
        """Owners are in use, once more each."""
        for owner in owners:
            self._users[owner] += 1
            if self._users[owner] == 1:
                self._hold(self._reads.get(owner, _NO_KEYS))
                if owner in self._reads and not have_read:
                    self._cold.add(owner)

    def leave(self, owners: Iterable[Hashable]) -> None:
        """Owners are in use, once less each."""
        for owner in owners:
            self._users[owner] -= 1
            if not self._users[owner]:
                del self._users[owner]
                self._cold.discard(owner)
                self._let_go(self._reads.get(owner, _NO_KEYS))

    def num_read(self, owners: Iterable[Hashable]) -> int:
        """Blocks that owners read again, counted for each."""
        return sum(len(self._reads.get(owner, _NO_KEYS)) for owner in owners)

    def num_more(self, owners: Iterable[Hashable]) -> int:
        """Different blocks that owners read again and nobody in use does."""
        keys = {key for one in owners for key in self._reads.get(one, _NO_KEYS).tolist()}
        return sum(key not in self._held for key in keys)

    def are_needed(self, owners: Iterable[Hashable]) -> bool:
        """Whether less would be held, were owners in use once less each."""
        alone = (owner for owner in owners if self._users[owner] == 1)
        keys = (key for one in alone for key in self._reads.get(one, _NO_KEYS).tolist())
        return any(self._held[key] == 1 for key in keys)

    def check_integrity(self, users: Counter[Hashable]) -> None:
        """Raise IntegrityError unless these are the users of each owner, and that is held."""
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
