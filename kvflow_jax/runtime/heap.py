"""Free memory of malloc's heap, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import platform

# Copies of extents that end in another order than they began leave holes as large as the host tier.
LEAST_FREE_BYTES = 32 << 20


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """Return glibc; None if this process has another libc, or one before 2.33."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _MallInfo
    return libc


def free_bytes() -> int:
    """Return the free bytes of malloc's heap; 0 if they are not known."""
    libc = _libc()
    return 0 if libc is None else int(libc.mallinfo2().fordblks)


def trim_heap() -> bool:
    """Give free pages of the heap back to the system, also those between blocks in use.

    glibc does so by itself only at the top of the heap. Blocks the other threads' allocations for
    milliseconds.

    Returns:
        False if little is free, or the libc is not glibc.
    """
    libc = _libc()
    if libc is None or free_bytes() < LEAST_FREE_BYTES:
        return False
    return bool(libc.malloc_trim(0))
