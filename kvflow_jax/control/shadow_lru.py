"""Watches whether following a client's graphs finds less than recency would have.

A shadow keeps the keys, and nothing else, of what a cache of the device's size would hold if it
let go of what was used longest ago. Where calls of a client keep finding less than that, what its
graphs say is not believed for a while; and where all calls together do, whosever graphs they
followed or none, nobody is.
"""

from __future__ import annotations

from collections import OrderedDict

from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request

_FRESH, _FRESH_OF_ALL = 0.1, 0.05  # weight of the newest call
_MARGIN = 0.1  # of a prompt's blocks, that recency must find more of to be preferred
_MIN_CALLS = 10  # of a client, before it is judged
_MIN_CALLS_OF_ALL = 20
_AWAY_CALLS = 200  # for which it is not believed; then it may try again
MAX_CLIENTS = 10_000


class ShadowLRU:
    """Keys of an LRU cache of ``num_blocks``."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._keys: OrderedDict[int, None] = OrderedDict()  # used longest ago first

    def use(self, keys: list[int]) -> int:
        """Use blocks, the first of a sequence first; how many from the start were there."""
        held = self._keys
        num_found = next((i for i, key in enumerate(keys) if key not in held), len(keys))
        for key in reversed(keys):  # so that ends go before what they continue
            held[key] = None
            held.move_to_end(key)
        while len(held) > self._num_blocks:
            held.popitem(last=False)
        return num_found


class _Client:
    __slots__ = ("lost", "num_away", "num_calls")

    def __init__(self) -> None:
        self.lost = 0.0  # share of prompts that recency would have found beyond what was found
        self.num_calls = 0
        self.num_away = 0  # calls until it is believed again


class LruFallback:
    """Judges clients by what their calls find.

    Args:
        num_blocks: of the device.
    """

    def __init__(self, num_blocks: int, page_size: int) -> None:
        self._num_blocks = num_blocks
        self._page = page_size
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._lost = self._read = 0.0  # blocks of a call, on average of late
        self._num_calls = 0  # since all were judged
        self._num_away = 0  # calls until anybody is believed again
        self.reset()

    def reset(self) -> None:
        """The cache is empty."""
        self._shadow = ShadowLRU(self._num_blocks)

    def falls_back_to_lru(self, client: str) -> bool:
        """Whether what a client's graphs say is not to be believed now."""
        known = self._clients.get(client)
        return self._num_away > 0 or (known is not None and known.num_away > 0)

    def read(self, request: Request, *, is_led: bool) -> bool:
        """A request's prompt has been computed, as far as it was not found.

        Args:
            is_led: whether it is a call of an agent.

        Returns:
            Whether its client, or everybody, is judged otherwise than before.
        """
        keys = block_hashes(request, request.num_prompt, self._page).tolist()
        num_found = self._shadow.use(keys)
        if not keys or request.scores_prompt:  # which may find nothing
            return False
        # The last token is always computed, so that its block is never found.
        lost = min(num_found, (request.num_prompt - 1) // self._page)
        lost -= (request.num_cached or 0) // self._page
        is_changed = self._judge_all(lost, len(keys))
        return (is_led and self._judge(request.tenant, lost / len(keys))) or is_changed

    def _judge_all(self, num_lost: int, num_read: int) -> bool:
        self._lost += _FRESH_OF_ALL * (num_lost - self._lost)
        self._read += _FRESH_OF_ALL * (num_read - self._read)
        self._num_calls += 1
        if self._num_away:
            self._num_away -= 1
            return not self._num_away
        if self._num_calls < _MIN_CALLS_OF_ALL or self._lost <= _MARGIN * self._read:
            return False
        self._lost, self._num_calls, self._num_away = 0.0, 0, _AWAY_CALLS
        return True

    def _judge(self, name: str, lost_share: float) -> bool:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        client.num_calls += 1
        if client.num_away:
            client.num_away -= 1
            return not client.num_away
        client.lost += _FRESH * (lost_share - client.lost)
        if client.num_calls < _MIN_CALLS or client.lost <= _MARGIN:
            return False
        client.lost, client.num_calls, client.num_away = 0.0, 0, _AWAY_CALLS
        return True

    def write(self, request: Request) -> None:
        """A request has ended: what it has written is in a cache, too."""
        num_written = min(request.num_computed, request.num_known)
        self._shadow.use(block_hashes(request, num_written, self._page).tolist())
