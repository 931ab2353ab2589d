"""The file of the learned order: lines of JSON, the first with the checksum of the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvflow_jax.models.regular_file import read_regular_file

log = logging.getLogger(__name__)

FORMAT, VERSION = "kvflow-learned-order", 1
MAX_BYTES = 64 << 20
_MAX_HEADER_BYTES = 1024
SET_ASIDE = ".set-aside"  # appended to the name of a file that cannot be used
_CLOSE_TIMEOUT_S = 3.0


class LearnedOrderFileError(ValueError):
    """The file is torn, of another version, or of another predictor."""


class LearnedOrderFile:
    """Writes the file on a thread of its own: to another name, flushed to the disk, then renamed.

    A failure is logged once, until the next success; the engine goes on without the file.

    Args:
        predictor: the name of the predictor whose rows it holds.
    """

    def __init__(self, path: Path, predictor: str, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._predictor = predictor
        self._thread: threading.Thread | None = None
        self._has_failed = False

    @property
    def is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def read(self) -> Iterator[Any]:
        """Yield the rows of the file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read, or is too large.
            LearnedOrderFileError: it is not a complete file of this version and predictor.
        """
        head, _, body = read_regular_file(self.path, self.max_bytes + _MAX_HEADER_BYTES).partition(
            b"\n"
        )
        try:
            header = json.loads(head)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise LearnedOrderFileError("it is no file of a learned order")
        if header.get("version") != VERSION:
            raise LearnedOrderFileError(f"its version is {header.get('version')!r}, not {VERSION}")
        if header.get("predictor") != self._predictor:
            raise LearnedOrderFileError(
                f"it is of the predictor {header.get('predictor')!r}, not {self._predictor!r}"
            )
        if header.get("sha256") != hashlib.sha256(body).hexdigest():
            raise LearnedOrderFileError("it is torn: its checksum is another")
        for line in body.splitlines():
            yield json.loads(line)

    def set_aside(self, error: Exception) -> None:
        """Rename a file that cannot be used, so that the next write does not replace it."""
        aside = self.path.with_name(self.path.name + SET_ASIDE)
        try:
            os.replace(self.path, aside)
        except OSError as failure:
            log.warning(
                "cannot use the learned order in %s (%s), nor rename it: %s",
                self.path,
                error,
                failure,
            )
            return
        log.warning(
            "cannot use the learned order in %s: %s; renamed it to %s and began anew",
            self.path,
            error,
            aside.name,
        )

    def write_later(self, lines: list[str]) -> None:
        """Write these lines, ASCII, on another thread, when those being written are.

        Together they have ``max_bytes`` at most.
        """
        self._wait()
        self._thread = threading.Thread(
            target=self._write, args=(lines,), name="kvflow-learned-order", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Wait for the write in progress, a few seconds at most."""
        self._wait()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _write(self, lines: list[str]) -> None:
        try:
            self._replace(lines)
        except OSError as error:
            if not self._has_failed:
                log.warning("cannot write the learned order to %s: %s", self.path, error)
            self._has_failed = True
        else:
            self._has_failed = False

    def _replace(self, lines: list[str]) -> None:
        body = "".join(line + "\n" for line in lines).encode()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "predictor": self._predictor,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        content = json.dumps(header).encode() + b"\n" + body
        temporary = self.path.with_name(self.path.name + ".tmp")
        # Other users of the machine must not read the names of agents.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
