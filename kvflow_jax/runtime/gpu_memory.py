"""Environment variables for how much GPU memory and pinned host memory JAX may use."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # current name, old name
_SERVER_FRACTION = "0.9"
_PINNED_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


def raise_pinned_memory_limit(env: MutableMapping[str, str] = os.environ) -> None:
    """Let JAX pin all host memory for the host tier; its default limit is 64 GB.

    Call before JAX initializes its backends. A limit that the user has set stays.
    """
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    env.setdefault(_PINNED_LIMIT, str(max(64, pages * page_bytes >> 30)))


def reserve_gpu_memory(env: MutableMapping[str, str] = os.environ) -> None:
    """Let a server preallocate 90% of the GPU's memory, which it does not share; JAX takes 75%.

    The rest is for CUDA and its libraries. Call before JAX initializes its backends. A fraction
    that the user has set stays.
    """
    raise_pinned_memory_limit(env)
    # JAX refuses to start with both names set.
    if not any(name in env for name in _FRACTIONS):
        env[_FRACTIONS[0]] = _SERVER_FRACTION
