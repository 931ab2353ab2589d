"""glibc's malloc as large arrays want it."""

from __future__ import annotations

import os
import platform
import sys

TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",  # a large array is there 4 times as fast
        "glibc.malloc.arena_max=1",  # the other arenas, those of threads, take no huge pages
        # What copies of extents free is kept for the next of them, 256 MiB at most.
        "glibc.malloc.mmap_threshold=33554432",
        "glibc.malloc.trim_threshold=268435456",
    )
)


def restart_with_huge_pages() -> None:
    """Begin this process anew with malloc's settings, which it reads only when it starts.

    Nothing happens where they are set, whatever they say, and where there is no glibc.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":  # for whoever starts Python: make, CI
    print(TUNABLES)
