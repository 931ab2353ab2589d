"""Two coding sessions on one server."""

import asyncio
import json
import math

from experiments.load import sessions
from tests.experiments.load.fake_server import FakeServer

SIZES = sessions.Sizes(range(256), num_prompt=6, num_turn=2, num_rounds=2)


def measure(server):
    async def run():
        async with server.listening() as address:
            return await sessions.measure(address, SIZES)

    return asyncio.run(run())


def test_sessions_are_measured_alone_beside_another_and_again():
    server = FakeServer()
    figures = measure(server)
    assert figures["kept_share"] == 0.5  # 3 tokens of 6
    assert figures["unclear"] == 0
    assert figures["first_token_ratio"] > 0
    assert figures["turn_ratio"] > 0
    prompts = [json.loads(body)["prompt"] for _, _, _, body in server.requests]
    lengths = [len(prompt) for prompt in prompts]
    # Alone, beside, each with another before it, and what is asked twice: 5 or 6, as the client
    # may leave before it has sent anything.
    assert lengths.count(8) == lengths.count(10) == SIZES.num_rounds
    assert 5 * SIZES.num_rounds <= lengths.count(6) <= 6 * SIZES.num_rounds


def test_refused_streams_are_counted():
    figures = measure(FakeServer(429, b"Retry-After: 1\r\n"))
    assert figures["unclear"] >= 7 * SIZES.num_rounds
    assert math.isnan(figures["first_token_ratio"])
