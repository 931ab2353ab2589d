"""Clients beside a measurement end with it."""

import asyncio

from experiments.load.background import background


def test_coroutines_run_within_the_context_alone():
    events = []

    async def client(name):
        try:
            events.append(f"{name} begins")
            await asyncio.Event().wait()
        finally:
            events.append(f"{name} ends")

    async def fail():
        raise OSError("its server refuses it")

    async def run():
        async with background([client("a"), client("b"), fail()]):
            await asyncio.sleep(0.01)
            events.append("measured")

    asyncio.run(run())
    assert events == ["a begins", "b begins", "measured", "a ends", "b ends"]
