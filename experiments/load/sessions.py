"""Two coding sessions on one server: one begins, or goes on, while the prompt of the other runs.

Prompts of coding agents are long, and on a small machine they take many seconds. Neither session
has an API key, so both are of one tenant. A client that leaves in the middle of its prompt and asks
again reads what was computed from the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from experiments.load.connections import COMPLETIONS, Address, stream

HEAD_START = 0.1  # of the other session, as a fraction of the time that its prompt takes alone
BROKEN_OFF = 0.5  # when a client leaves, as a fraction of that time


@dataclass(frozen=True)
class Sizes:
    """How long the prompts are, and how often they are measured.

    Attributes:
        vocab: token ids of prompts.
        num_prompt: tokens of a session's first prompt.
        num_turn: tokens that its next turn adds.
    """

    vocab: range
    num_prompt: int = 5000
    num_turn: int = 300
    num_rounds: int = 3


@dataclass
class Sessions:
    """Sessions on a server, and what they saw.

    Attributes:
        first_s: seconds to the first token by what was asked.
        kept: shares of prompts that were cached when they were asked again.
        num_unclear: streams that were not answered whole.
    """

    address: Address
    sizes: Sizes
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    first_s: dict[str, list[float]] = field(default_factory=dict)
    kept: list[float] = field(default_factory=list)
    num_unclear: int = 0

    def tokens(self, num: int) -> list[int]:
        """Return tokens that no prompt has had."""
        drawn: list[int] = self.rng.integers(
            self.sizes.vocab[0], self.sizes.vocab[-1], num
        ).tolist()
        return drawn

    def prompt(self) -> list[int]:
        """Return the first prompt of a new session."""
        return self.tokens(self.sizes.num_prompt)

    async def ask(self, what: str, prompt: list[int]) -> int:
        """Ask for a few tokens and note when the first came; return how many were cached."""
        body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0}
        ended = await stream(self.address, COMPLETIONS, body)
        if ended.outcome != "whole" or not ended.token_s:
            self.num_unclear += 1
            return 0
        self.first_s.setdefault(what, []).append(ended.token_s[0])
        cached: int = (ended.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return cached

    async def run_round(self) -> None:
        """Ask for each of the figures once."""
        prompt = self.prompt()
        await self.ask("alone", prompt)
        prompt += self.tokens(self.sizes.num_turn)
        await self.ask("turn_alone", prompt)
        async with self._another():
            await self.ask("beside", self.prompt())
        prompt += self.tokens(self.sizes.num_turn)
        async with self._another():
            await self.ask("turn_beside", prompt)
        prompt = self.prompt()
        leaving = asyncio.create_task(self.ask("broken_off", prompt))
        await asyncio.sleep(BROKEN_OFF * self._alone_s())
        leaving.cancel()
        await asyncio.wait([leaving])
        self.kept.append(await self.ask("again", prompt) / len(prompt))

    def figures(self) -> dict[str, Any]:
        """Return the medians, and their ratios."""
        first_ms = {what: median(times) * 1e3 for what, times in self.first_s.items()}
        nan = float("nan")
        return {
            "prompt_tokens": self.sizes.num_prompt,
            **{f"first_token_{what}_ms": value for what, value in first_ms.items()},
            "first_token_ratio": first_ms.get("beside", nan) / first_ms.get("alone", nan),
            "turn_ratio": first_ms.get("turn_beside", nan) / first_ms.get("turn_alone", nan),
            "kept_share": median(self.kept),
            "unclear": self.num_unclear,
        }

    def _alone_s(self) -> float:
        return median(self.first_s.get("alone", [0.0]))

    @asynccontextmanager
    async def _another(self) -> AsyncIterator[None]:
        """Run the first prompt of another session, which begins before."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.ask("before", self.prompt()))
            await asyncio.sleep(HEAD_START * self._alone_s())
            yield


async def measure(address: Address, sizes: Sizes) -> dict[str, Any]:
    """Measure first tokens of a session alone, beside another, and after it was broken off."""
    await Sessions(address, sizes, np.random.default_rng(1)).ask("warm-up", [sizes.vocab[1]] * 64)
    sessions = Sessions(address, sizes)
    for _ in range(sizes.num_rounds):
        await sessions.run_round()
    return sessions.figures()
