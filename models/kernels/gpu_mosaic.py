"""Attention on Hopper GPUs, of decode rows and of prompts: reads the pages where they lie.

By Pallas on Mosaic GPU; the program itself is in ``gpu_mosaic_program``. Never the default before a
device run has shown that it is right and faster: ``experiments.device_check``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import AttentionMetadata, by_rows
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.kernels.base import Case, Declined, Kernel

HOPPER = "9."  # its tensor cores and its copy engine; those of later chips are called otherwise
DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)  # at 256 the threads run out of registers, and spill some
MIN_PAGE_SIZE = 8
# Tokens whose keys and values are fetched at a time, and how often that much has room in shared
# memory. At 128 dimensions these leave room for two programs on a processor.
BLOCK_LEN, STAGES = 64, 2
SMEM_BYTES, SMALL_BYTES = 227 << 10, 4 << 10  # of a program; of that, for all but matrices


def check(case: Case, *, block_len: int = BLOCK_LEN, stages: int = STAGES) -> None:
    """Raises Declined."""
    head_dim, page_size = case.config.head_dim, case.page_size
    if case.platform != "gpu":
        raise Declined(f"it runs on gpu, this is {case.platform}")
    if not case.capability.startswith(HOPPER):
        raise Declined(f"it runs on compute capability 9, this is {case.capability or 'unknown'}")
    if head_dim not in HEAD_DIMS:
        raise Declined(f"head_dim {head_dim} is none of {', '.join(map(str, HEAD_DIMS))}")
    if page_size & (page_size - 1) or page_size < MIN_PAGE_SIZE:
        raise Declined(f"page_size {page_size} is no power of two from {MIN_PAGE_SIZE} on")
    if case.dtype not in DTYPES:
        raise Declined(f"it computes {' and '.join(DTYPES)}, not {case.dtype}")
    # Queries, keys and values, weights.
    needed = 2 * (64 * head_dim + 2 * stages * block_len * head_dim + 64 * block_len) + SMALL_BYTES
    if needed > SMEM_BYTES:
        raise Declined(f"it needs {needed} bytes of shared memory, of {SMEM_BYTES}")
    try:
        _program()
    except ImportError as error:
        raise Declined(f"this JAX has no Pallas on Mosaic GPU: {error}") from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
    *,
    block_len: int = BLOCK_LEN,
    stages: int = STAGES,
) -> tuple[jax.Array, KVPool]:
    """See ``attention.attend``.

    Args:
        block_len: tokens fetched at a time, a power of two from 64 on.
        stages: how many of those have room in shared memory.
    """
    pool = pool.write(layer, rows.write_kv_slots, k, v)
    attend_rows = partial(_program().attend_rows, block_len=block_len, stages=stages)
    return by_rows(attend_rows, layer, q, rows, pool, kind), pool


def _program() -> ModuleType:
    """Imported where it is used: Mosaic GPU takes half a second, wherever one runs."""
    from kvflow_jax.models.kernels import gpu_mosaic_program

    return gpu_mosaic_program


KERNEL = Kernel(attend, check)
