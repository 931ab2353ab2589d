"""What it costs to have KV again: to load it, or to compute it; measured while serving."""

from __future__ import annotations

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import TransferManager

_FRESH = 0.2  # weight of the newest step in the estimate
_MIN_TOKENS = 64  # a step with fewer prompt tokens says nothing of what one takes


class CostModel:
    """Compares the two. Says that loading pays until it knows better."""

    def __init__(self) -> None:
        self._s_per_token: float | None = None
        self.decode_s = 0.0  # of steps that computed no prompt

    def note_step(self, num_prompt_tokens: int, seconds: float) -> None:
        """A step with so many prompt tokens took so long."""
        if not num_prompt_tokens:
            self.decode_s += seconds
        if num_prompt_tokens < _MIN_TOKENS or seconds <= 0:
            return
        new = seconds / num_prompt_tokens
        old = new if self._s_per_token is None else self._s_per_token
        self._s_per_token = old + _FRESH * (new - old)

    def compute_s(self, num_tokens: int) -> float:
        """Seconds to compute tokens of prompts; 0 where it is not known."""
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
        """Whether to load blocks rather than to compute their tokens.

        Who waits for a load keeps nobody else from running; who computes keeps all others:

            wait for the load <= compute * (1 + others)

        Args:
            num_blocks: to be loaded behind what is under way already.
            num_others: requests that would run meanwhile.
            spare_s: until they are needed.
        """
        if self._s_per_token is None:
            return True
        load_s = transfer_manager.seconds(Direction.LOAD, num_blocks) - spare_s
        return load_s <= num_tokens * self._s_per_token * (1 + num_others)
