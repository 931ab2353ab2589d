"""The default pool sizes of earlier starts, by model and device, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

_FILE = "pool-sizes.json"
_MAX_ENTRIES = 256


class PoolSizes:
    """A small file of the cache folder; whatever cannot be read or written is not remembered.

    The number of pages is part of every program's shape. A start that takes the size of the one
    before finds its programs compiled.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / _FILE

    def last(self, *key: object) -> int | None:
        """Return the number of pages that a start with this key has chosen; None: no start has."""
        return self._read().get(_digest(key))

    def remember(self, num_pages: int, *key: object) -> None:
        """Note the number of pages that this start has chosen."""
        sizes, name = self._read(), _digest(key)
        if sizes.get(name) == num_pages:
            return
        sizes.pop(name, None)  # the entry written last is last
        sizes[name] = num_pages
        text = json.dumps(dict(list(sizes.items())[-_MAX_ENTRIES:]), indent=0)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        # Not in a folder that is read-only.
        with suppress(OSError):
            temporary.write_text(text)
            temporary.replace(self._path)

    def _read(self) -> dict[str, int]:
        try:
            sizes = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(sizes, dict):
            return {}
        return {name: size for name, size in sizes.items() if type(size) is int and size > 0}


def _digest(key: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]
