"""Attention of decode rows and of tiles on Hopper GPUs; it reads the pages in place.

The program, in Pallas on Mosaic GPU, is in ``gpu_mosaic_program``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import AttentionMetadata, map_uniform_rows
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.kernels.base import Declined, Kernel, KernelTarget

# Compute capability. Later chips have other instructions for tensor cores and copy engine.
HOPPER = "9."
DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)  # at 256 the threads spill some registers
MIN_PAGE_SIZE = 8
# Tokens of K and V per fetch, and the number of such buffers in shared memory (pipeline stages).
# With head_dim 128 two programs fit on a processor.
BLOCK_LEN, STAGES = 64, 2
SMEM_BYTES, SMALL_BYTES = 227 << 10, 4 << 10  # limit of a program; part for all but matrices


def check(target: KernelTarget, *, block_len: int = BLOCK_LEN, stages: int = STAGES) -> None:
    """Raise ``Declined`` if the kernel does not support the target."""
    head_dim, page_size = target.config.head_dim, target.page_size
    if target.platform != "gpu":
        raise Declined(f"it runs on gpu, not on {target.platform}")
    if not target.capability.startswith(HOPPER):
        raise Declined(f"it needs compute capability 9, not {target.capability or 'unknown'}")
    if head_dim not in HEAD_DIMS:
        raise Declined(f"head_dim {head_dim} is not one of {', '.join(map(str, HEAD_DIMS))}")
    if page_size & (page_size - 1) or page_size < MIN_PAGE_SIZE:
        raise Declined(f"page_size {page_size} is not a power of two of at least {MIN_PAGE_SIZE}")
    if target.dtype not in DTYPES:
        raise Declined(f"it supports {' and '.join(DTYPES)}, not {target.dtype}")
    # Queries, keys and values, weights.
    needed = 2 * (64 * head_dim + 2 * stages * block_len * head_dim + 64 * block_len) + SMALL_BYTES
    if needed > SMEM_BYTES:
        raise Declined(f"it needs {needed} bytes of shared memory; the limit is {SMEM_BYTES}")
    try:
        _program()
    except ImportError as error:
        raise Declined(f"this JAX has no Pallas on Mosaic GPU: {error}") from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
    *,
    block_len: int = BLOCK_LEN,
    stages: int = STAGES,
) -> tuple[jax.Array, KVPool]:
    """Compute ``attention.attend``.

    Args:
        block_len: tokens per fetch, a power of two of at least 64.
        stages: number of blocks in shared memory (pipeline stages).
    """
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    attend_rows = partial(_program().attend_rows, block_len=block_len, stages=stages)
    return map_uniform_rows(attend_rows, layer, q, metadata, pool, config), pool


def _program() -> ModuleType:
    """Import the program lazily: importing Mosaic GPU takes half a second, on any device."""
    from kvflow_jax.models.kernels import gpu_mosaic_program

    return gpu_mosaic_program


KERNEL = Kernel(attend, check)
