"""Keys of blocks: for whoever keeps count of what a cache holds, or could, without holding it."""

from __future__ import annotations

import numpy as np

from kvflow_jax.requests.request import Request


def block_hashes(request: Request, num_tokens: int, page_size: int) -> np.ndarray:
    """A key for each full block of a sequence's first tokens, i64[num_tokens // page_size].

    It stands for all up to the block's end, under the request's root: equal keys, equal KV. Each
    is computed once for a request.
    """
    keys, tokens = request.block_hashes, request.tokens
    num = num_tokens // page_size
    if len(keys) < num:
        data = tokens[len(keys) * page_size : num * page_size].tobytes()
        size, key = page_size * tokens.itemsize, keys[-1] if keys else hash(request.root)
        for at in range(0, len(data), size):
            key = hash((key, data[at : at + size]))
            keys.append(key)
    return np.array(keys[:num], np.int64)


def num_common(a: np.ndarray, b: np.ndarray) -> int:
    """How long two sequences of keys, i64[n] and i64[m], agree from their start."""
    both = min(len(a), len(b))
    differ = a[:both] != b[:both]
    return int(differ.argmax()) if differ.any() else both
