"""Many streams at once."""

import asyncio

from experiments.load import streams
from experiments.load.connections import Stream
from tests.experiments.load.fake_server import FakeServer


def test_every_stream_is_counted_by_its_outcome():
    server = FakeServer()

    async def run():
        async with server.listening() as address:
            return await streams.measure(address, 5)

    figures = asyncio.run(run())
    assert (figures["whole"], figures["refused"], figures["unclear"]) == (5, 0, 0)
    assert {"first_token_p50_ms", "health_p99_ms"} <= figures.keys()
    bodies = {body for _, path, _, body in server.requests if path != "/health"}
    assert len(bodies) == 5  # no two are answered from one cached prefix


def test_streams_without_tokens_have_no_first_token():
    figures = streams.outcomes([Stream("refused"), Stream("unclear")])
    assert figures == {"whole": 0, "refused": 1, "unclear": 1}
