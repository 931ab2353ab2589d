"""The user's cache folder: what is in it, and the removal of what was not used for longest.

    <cache>/models/     converted weights, a folder each      (``checkpoint``)
    <cache>/native/     kernels built for this CPU, a file each
    <cache>/xla/        compiled programs, a file each        (JAX's compilation cache)
    <cache>/in-use.lock

A start holds the lock shared while it reads and writes; a removal takes it exclusively, or does
nothing. Starts of several processes do not wait for each other, and the last of them trims.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvflow_jax.errors import KVFlowError

KINDS = {"models": "models", "kernels": "native", "programs": "xla"}  # kind of entry -> its folder
LOCK_FILE = "in-use.lock"
_TEMPORARY = ".tmp-"  # in the names of checkpoints that are being written


class CacheInUseError(KVFlowError):
    """A start uses the cache folder, or its lock cannot be taken."""


@dataclass(frozen=True)
class CacheEntry:
    """Something that the next start would convert, build or compile again.

    Attributes:
        last_used_s: when it was last used, in seconds since 1970. Of programs, which JAX reads, the
            operating system may tell it only to the day, or only when they were written (noatime).
    """

    kind: str
    path: Path
    num_bytes: int
    last_used_s: float


def default_cache_dir() -> Path:
    """Return the default cache folder."""
    return Path.home() / ".cache" / "kvflow-jax"


@dataclass(frozen=True)
class CacheFolder:
    """A cache folder, which need not exist."""

    path: Path

    def entries(self) -> list[CacheEntry]:
        """Return the entries, the least recently used first; without checkpoints being written."""
        found = []
        for kind, name in KINDS.items():
            folder = self.path / name
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_dir() and _TEMPORARY in path.name:
                    continue
                # OSError: another process has removed it meanwhile.
                with suppress(OSError):
                    found.append(_entry(kind, path))
        return sorted(found, key=lambda entry: entry.last_used_s)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let no process remove entries within the context; waits while one does."""
        with suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            file = (self.path / LOCK_FILE).open("a")
        except OSError:  # the folder is read-only, so no process removes entries
            yield
            return
        with file:
            # Some network file systems have no locks.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def trim(self, max_bytes: int, *, keep_since_s: float = math.inf) -> list[CacheEntry]:
        """Remove the least recently used entries until the rest fits; return the removed ones.

        Args:
            keep_since_s: entries used since this time, in seconds since 1970, stay.

        Raises:
            CacheInUseError: a start uses the folder; nothing was removed.
        """
        with self._exclusive():
            entries = self.entries()
            excess = sum(entry.num_bytes for entry in entries) - max_bytes
            removed = []
            for entry in entries:
                if excess <= 0 or entry.last_used_s >= keep_since_s:
                    break
                _remove(entry.path)
                excess -= entry.num_bytes
                removed.append(entry)
            return removed

    def clear(self, kind: str | None = None) -> list[CacheEntry]:
        """Remove all entries, or those of a kind; return them.

        Raises:
            CacheInUseError: a start uses the folder; nothing was removed.
        """
        with self._exclusive():
            removed = [entry for entry in self.entries() if kind in (None, entry.kind)]
            for entry in removed:
                _remove(entry.path)
            return removed

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self.path.is_dir():
            yield
            return
        with ExitStack() as stack:
            try:
                file = stack.enter_context((self.path / LOCK_FILE).open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CacheInUseError(
                    f"a process starts with {self.path}; try again when it is ready"
                ) from error
            except OSError as error:
                raise CacheInUseError(f"{self.path} cannot be locked: {error.strerror}") from error
            yield


def mark_used(path: Path) -> None:
    """Note that an entry is used now."""
    # Not for a folder that is read-only.
    with suppress(OSError):
        os.utime(path)


def _entry(kind: str, path: Path) -> CacheEntry:
    stat = path.stat()
    if path.is_dir():
        num_bytes = sum(file.lstat().st_size for file in path.rglob("*"))
        # Its files are read by other programs, too, such as a backup.
        return CacheEntry(kind, path, num_bytes, stat.st_mtime)
    return CacheEntry(kind, path, stat.st_size, max(stat.st_mtime, stat.st_atime))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Renamed first: a process that was killed in between leaves no torn checkpoint.
        removed = path.with_name(f"{path.name}{_TEMPORARY}removed")
        with suppress(OSError):
            path.rename(removed)
            path = removed
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
