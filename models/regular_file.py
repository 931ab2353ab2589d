"""Reads files that users and checkpoints name: of any kind, and of any size."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than ``max_bytes``;
            ``strerror`` says which.
    """
    try:
        # Opening a FIFO would block until a process writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error)) from error
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes >> 20} MiB")
    return content
