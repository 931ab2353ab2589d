"""The cost model of KV that left the device: seconds to load it against seconds to recompute it.

Both costs are measured while serving.
"""

from __future__ import annotations

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import TransferManager

_EWMA_WEIGHT = 0.2  # of the newest step
_MIN_TOKENS = 64  # below this many prompt tokens, fixed costs dominate the time of a step


class CostModel:
    """Decides between loading and recomputing. Prefers loading until a prefill was measured.

    Attributes:
        decode_s: total seconds of steps that computed no prompt tokens.
    """

    def __init__(self) -> None:
        self._s_per_token: float | None = None
        self.decode_s = 0.0

    def note_step(self, num_prompt_tokens: int, seconds: float) -> None:
        """Record the duration of a step that computed ``num_prompt_tokens`` prompt tokens."""
        if not num_prompt_tokens:
            self.decode_s += seconds
        if num_prompt_tokens < _MIN_TOKENS or seconds <= 0:
            return
        new = seconds / num_prompt_tokens
        old = new if self._s_per_token is None else self._s_per_token
        self._s_per_token = old + _EWMA_WEIGHT * (new - old)

    def compute_s(self, num_tokens: int) -> float:
        """Return the seconds to compute ``num_tokens`` prompt tokens; 0 before a measurement."""
        return num_tokens * (self._s_per_token or 0.0)

    def should_load(
        self,
        transfer_manager: TransferManager,
        num_blocks: int,
        num_tokens: int,
        *,
        num_others: int,
        spare_s: float = 0,
    ) -> bool:
        """Return whether to load blocks rather than recompute their tokens.

        A request that waits for a load delays no other request; one that recomputes delays all
        others:

            load time - spare time <= compute time * (1 + num_others)

        Args:
            num_blocks: blocks to load, queued behind the transfers in flight.
            num_tokens: tokens to compute instead.
            num_others: requests that would run meanwhile.
            spare_s: seconds until the blocks are needed.
        """
        if self._s_per_token is None:
            return True
        load_s = transfer_manager.estimate_s(Direction.LOAD, num_blocks) - spare_s
        return load_s <= num_tokens * self._s_per_token * (1 + num_others)
