"""Libraries that were built on earlier starts, kept where no one else can write.

A library is named by its key and the digest of its content, so that a torn or exchanged one is
found before it is loaded: loading would run its code, or end the process.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from kvflow_jax.models.own_files import is_own, others_may_write

log = logging.getLogger(__name__)


def own_folder(path: Path) -> Path:
    """Return a folder that belongs to this user and that no one else can write to.

    It is ``path``, which is created, unless that belongs to another user or is a link: then a
    temporary one, removed when this process ends.

    Raises:
        OSError: it cannot be created.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if is_own(path, stat.S_ISDIR):
        if others_may_write(path):
            path.chmod(0o700)
        return path
    log.warning(
        "%s belongs to another user or is a link, so its libraries are not loaded; this start "
        "builds its own. Choose another cache folder",
        path,
    )
    temporary = Path(tempfile.mkdtemp(prefix="kvflow-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def cached_library(folder: Path, key: str, build: Callable[[Path], object]) -> Path:
    """Return the library of a key, which is built first if none is there or it has been changed.

    Args:
        folder: of ``own_folder``.
        key: of what the library is built from.
        build: writes the library to a file.

    Raises:
        OSError: the folder cannot be written, or ``build`` raises it.
    """
    for path in folder.glob(f"{key}-*.so"):
        is_closed = is_own(path, stat.S_ISREG) and not others_may_write(path)
        if is_closed and path.name == _name(key, path):
            return path
        log.warning("%s is not as it was built, or others can write to it: built again", path)
        path.unlink()
    # A temporary file is renamed: another process may build the same library.
    handle, name = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    scratch = Path(name)
    try:
        build(scratch)
        scratch.chmod(0o700)
        path = folder / _name(key, scratch)
        os.replace(scratch, path)
        return path
    finally:
        scratch.unlink(missing_ok=True)


def _name(key: str, path: Path) -> str:
    with path.open("rb") as file:
        return f"{key}-{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}.so"
