"""Checks that no other user can have written files of a cache that are run as code."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH


def is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """True for a file of this user that is of a kind, and no link.

    Args:
        is_kind: of its mode, such as ``stat.S_ISREG``.

    Raises:
        OSError: there is no such file.
    """
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid == os.geteuid()


def others_may_write(path: Path) -> bool:
    """True if the group of a file or folder, or every user, may write to it.

    Raises:
        OSError: there is no such file.
    """
    return bool(path.stat().st_mode & _OTHERS_WRITE)


def untrusted_file(folder: Path) -> Path | None:
    """Return a folder, or a file in it, that another user may have written; None if there is none.

    A link counts as such. Files of root do not: root can change any file, and container images
    have its files.

    Raises:
        OSError: the folder cannot be read.
    """
    of_folder = folder.lstat()
    if not _is_safe(of_folder, _OTHERS_WRITE):
        return folder
    # Other users cannot reach files of a closed folder, whatever modes the umask has given them.
    forbidden = _OTHERS_WRITE if of_folder.st_mode & _OTHERS_ENTER else 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            if not _is_safe(path.lstat(), forbidden):
                return path
    return None


def _is_safe(found: os.stat_result, forbidden: int) -> bool:
    is_link = stat.S_ISLNK(found.st_mode)
    return not is_link and found.st_uid in (os.geteuid(), 0) and not found.st_mode & forbidden
