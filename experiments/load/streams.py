"""Many clients that open a stream each within a few seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from experiments.bench.serve_bench import spread_ms
from experiments.load.connections import CHAT, Address, Stream, stream
from experiments.load.health import watched

STREAMS_PER_S = 100.0


async def measure(address: Address, num_streams: int) -> dict[str, Any]:
    """Open the streams, wait for their ends, and return the figures."""
    async with watched(address) as health:
        ended = await arrivals(address, num_streams, STREAMS_PER_S)
    return outcomes(ended) | health.figures()


async def arrivals(address: Address, num: int, per_s: float) -> list[Stream]:
    """Open streams at a fixed rate, and wait for their ends."""
    streams = []
    for number in range(num):
        body = {
            "messages": [{"role": "user", "content": f"{number}: name a fruit"}],
            "max_tokens": 8,
            "ignore_eos": True,
        }
        streams.append(asyncio.create_task(stream(address, CHAT, body)))
        await asyncio.sleep(1 / per_s)
    return await asyncio.gather(*streams)


def outcomes(ended: Iterable[Stream]) -> dict[str, Any]:
    """Return how many streams ended how, and the spread of their times to the first token."""
    ended = list(ended)
    counts = Counter(one.outcome for one in ended)
    figures: dict[str, Any] = {name: counts[name] for name in ("whole", "refused", "unclear")}
    if first := [one.token_s[0] for one in ended if one.token_s]:
        figures |= {f"first_token_{name}": value for name, value in spread_ms(first).items()}
    return figures
