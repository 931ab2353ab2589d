"""Turns panics of Rust libraries, which ``except Exception`` does not catch, into errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a RuntimeError in place of a panic within the context.

    PyO3 raises a BaseException for a panic, which would end the thread or the process. The readers
    of tokenizers panic on some malformed files.
    """
    try:
        yield
    except BaseException as error:
        # PyO3's class is in no module that can be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the library panicked: {error}") from error
