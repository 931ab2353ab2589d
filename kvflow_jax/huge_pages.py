"""glibc's malloc as large arrays want it."""

from __future__ import annotations

import os
import platform
import sys

# Huge pages make a large array 4x faster to come by. One arena, because the others take none:
# copies on threads of their own are twice as fast with it.
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


def restart_with_huge_pages() -> None:
    """Begin this process anew with malloc's settings, which it reads only when it starts.

    Nothing happens where they are set, whatever they say, and where there is no glibc.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    os.execv(sys.executable, sys.orig_argv)
