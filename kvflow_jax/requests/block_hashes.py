"""Block hashes: keys of KV blocks, for bookkeeping about a cache without its blocks."""

from __future__ import annotations

import numpy as np

from kvflow_jax.requests.request import Request


def block_hashes(request: Request, num_tokens: int, page_size: int) -> np.ndarray:
    """Return the hash of each full block of the first tokens, i64[num_tokens // page_size].

    A hash covers all tokens up to the end of its block, and the request's root key: blocks of equal
    hashes hold equal KV. The request keeps its hashes, so that each is computed once.
    """
    hashes, tokens = request.block_hashes, request.tokens
    num_blocks = num_tokens // page_size
    if len(hashes) < num_blocks:
        data = tokens[len(hashes) * page_size : num_blocks * page_size].tobytes()
        block_bytes = page_size * tokens.itemsize
        block_hash = hashes[-1] if hashes else hash(request.root)
        for start in range(0, len(data), block_bytes):
            block_hash = hash((block_hash, data[start : start + block_bytes]))
            hashes.append(block_hash)
    return np.array(hashes[:num_blocks], np.int64)


def common_prefix_len(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix of two hash sequences, i64[n] and i64[m]."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length
