"""Latency of /health while something else runs."""

import asyncio

from experiments.load.health import Health, watched
from tests.experiments.load.fake_server import FakeServer


def test_health_is_watched_within_the_context():
    server = FakeServer()

    async def run():
        async with server.listening() as address, watched(address) as health:
            pass
        return health

    health = asyncio.run(run())
    assert server.requests[0][:2] == ("GET", "/health")
    assert len(health.latencies) >= 1
    assert health.figures()["health_failed"] == 0


def test_what_was_not_answered_is_counted_apart():
    figures = Health([0.001, None, 0.003]).figures()
    assert figures["health_failed"] == 1
    assert 1.9 < figures["health_p50_ms"] < 2.1
