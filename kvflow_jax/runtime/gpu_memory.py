"""How much memory JAX takes of a GPU and, pinned, of its host."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # now, and before
_SERVER_FRACTION = "0.9"
_PINNED_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


def raise_pinned_memory_limit(env: MutableMapping[str, str] = os.environ) -> None:
    """The host tier may be as large as the host: JAX pins 64 GB at most unless told otherwise.

    Call before JAX looks for devices; what the user has set stays.
    """
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    env.setdefault(_PINNED_LIMIT, str(max(64, pages * page_bytes >> 30)))


def reserve_gpu_memory(env: MutableMapping[str, str] = os.environ) -> None:
    """A server has the GPU to itself: nine tenths of its memory, where JAX takes three quarters.

    The rest is for what CUDA and its libraries hold beside. Call before JAX looks for devices; what
    the user has set stays.
    """
    raise_pinned_memory_limit(env)
    if not any(name in env for name in _FRACTIONS):  # both at once JAX refuses
        env[_FRACTIONS[0]] = _SERVER_FRACTION
