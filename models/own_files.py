"""Which files of a cache may be run: those that nobody but this user can have written."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH


def is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """True for a file of this user, of a kind of ``stat`` and no link."""
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid == os.geteuid()


def others_may_write(path: Path) -> bool:
    """True if a file or folder is writable by its group or by all."""
    return bool(path.stat().st_mode & _OTHERS_WRITE)


def untrusted_file(folder: Path) -> Path | None:
    """Return a folder, or a file in it, that another user may have written; None if all are safe.

    Files of root are safe: it may do anything anyway, and images of containers have them.

    Raises:
        OSError: the folder cannot be read.
    """
    of_folder = folder.lstat()
    if not _is_safe(of_folder, _OTHERS_WRITE):
        return folder
    # Files of a closed folder are out of reach, whatever the umask has made of their modes.
    forbidden = _OTHERS_WRITE if of_folder.st_mode & _OTHERS_ENTER else 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            if not _is_safe(path.lstat(), forbidden):
                return path
    return None


def _is_safe(found: os.stat_result, forbidden: int) -> bool:
    is_link = stat.S_ISLNK(found.st_mode)
    return not is_link and found.st_uid in (os.geteuid(), 0) and not found.st_mode & forbidden
