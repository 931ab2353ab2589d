"""Which cached blocks a request uses, and which of its own blocks others may use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import BatchShapes

BlockKey = tuple[RootKey, int | None, bytes]  # root, the block before it, its tokens


class PrefixSharing:
    """The rules of sharing, of which deterministic steps have their own.

    Attributes:
        uses_host_tier: False: recompute host-only blocks.
        should_load: called with (blocks to load, tokens to compute instead); returns whether to
            load.
    """

    def __init__(self, cache: PrefixCache, shapes: BatchShapes) -> None:
        self.uses_host_tier = True
        self.should_load: Callable[[int, int], bool] = lambda num_blocks, num_tokens: True
        self._cache = cache
        self._shapes = shapes

    def match(self, request: Request) -> np.ndarray:
        """Return the blocks i32[n] of the cached prefix that a waiting request should use."""
        matched = self._match_index(request)
        state = self._cache.state_of(matched)
        num_used = state.num_usable if self.uses_host_tier else state.num_on_device
        num_tokens = (num_used - state.num_valid) * self._cache.page_size
        if num_tokens and not self.should_load(num_used - state.num_on_device, num_tokens):
            num_used = state.num_valid
        matched = matched[:num_used]
        if not self._shapes.deterministic:
            return matched
        pages_per_tile = self._shapes.tile // self._cache.page_size
        return matched[: len(matched) // pages_per_tile * pages_per_tile]

    def may_hit(self, request: Request) -> bool:
        """True if a running request may use blocks that other requests have computed."""
        return not (request.scores_prompt or self._shapes.deterministic)

    def shareable_tokens(self, request: Request) -> np.ndarray:
        """Return the leading tokens i32[n] that may be indexed."""
        return request.tokens[: self._num_shareable(request)]

    def has_unindexed_block(self, request: Request) -> bool:
        """True if a running request has a full block that is not indexed."""
        assert request.lease is not None
        return self._num_shareable(request) // self._cache.page_size > request.lease.num_indexed

    def next_block(self, request: Request) -> BlockKey | None:
        """Return the key of the block that a running request computes next.

        None if the block's tokens are not all known.
        """
        if request.lease is None or request.num_computed >= request.num_known:
            return None
        return self.block_key(
            request, request.lease.blocks[: request.num_computed // self._cache.page_size]
        )

    def block_key(self, request: Request, before: np.ndarray) -> BlockKey | None:
        """Return (root, parent block, tokens) of the block behind ``before``, i32[n], if full."""
        page = self._cache.page_size
        tokens = request.known_tokens[len(before) * page : (len(before) + 1) * page]
        if len(tokens) < page:
            return None
        return request.root, int(before[-1]) if len(before) else None, tokens.tobytes()

    def _num_shareable(self, request: Request) -> int:
        """Return how many leading tokens are known, written or planned, and may be indexed."""
        num_tokens = min(request.num_known, request.num_computed)
        return min(num_tokens, request.num_prompt) if self._shapes.deterministic else num_tokens

    def _match_index(self, request: Request) -> np.ndarray:
        """Return the blocks i32[n] of the longest indexed prefix that leaves a token to compute."""
        if request.scores_prompt:
            return np.empty(0, np.int32)
        if not self._shapes.deterministic:
            return self._cache.match(request.root, request.known_tokens[:-1])
        return self._cache.match(request.root, request.known_tokens[: request.num_prompt - 1])
