"""Requests that are broken off, and what they leave behind."""

import asyncio
from dataclasses import dataclass

import pytest

from experiments.load import aborts
from tests.experiments.load.fake_server import FakeServer


@dataclass
class Server:
    """A server process that holds more each time that it is asked."""

    url: str
    num_asked: int = 0

    def num_threads(self):
        return 7

    def num_handles(self):
        self.num_asked += 1
        return 10 * self.num_asked

    def resident_bytes(self):
        return 1000 + 10 * self.num_asked


def measure(num_requests):
    fake = FakeServer()

    async def run():
        async with fake.listening() as address:
            return await aborts.measure(Server(f"http://127.0.0.1:{address.port}"), num_requests)

    return asyncio.run(run()), fake.requests


def test_what_is_left_is_compared_with_the_start_of_the_second_half():
    figures, requests = measure(2 * 2 * len(aborts.WAYS))
    assert (figures["whole"], figures["broken_off"]) == (22, 22)
    assert (figures["threads_more"], figures["handles_more"]) == (0, 10)
    assert figures["leased_fraction"] == 0.25
    assert figures["memory_ratio"] == pytest.approx(1020 / 1010)
    assert ("POST", "/flush_cache") in [one[:2] for one in requests]


@pytest.mark.parametrize("way", aborts.WAYS)
def test_each_way_leaves_by_itself(way):
    server = FakeServer(stream=b"data: {}\n\n" * 4)

    async def run():
        async with server.listening() as address, address.connection() as pair:
            await way(*pair, address.request("/v1/completions", {"stream": True}))

    asyncio.run(run())


def test_eleven_ways_are_different():
    assert len(set(aborts.WAYS)) == len(aborts.WAYS) == 11
