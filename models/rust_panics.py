"""Panics of libraries in Rust, which escape ``except Exception``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic within the context as a RuntimeError.

    PyO3 makes each an exception that is no ``Exception``, so that it ends a thread or the process.
    Readers of files panic on those that their authors did not think of.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a module that cannot be imported
            raise
        raise RuntimeError(f"the library panicked: {error}") from error
