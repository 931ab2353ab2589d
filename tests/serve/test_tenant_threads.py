from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from kvflow_jax.serve.tenant_threads import TenantThreads


class Gate:
    """Work that waits until it is let go, and notes when it ran."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.open = threading.Event()

    def work(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.open.wait()
            self.order.append(name)
            return name

        return run


def test_tenants_take_turns() -> None:
    async def scenario() -> None:
        threads, gate = TenantThreads(1, "test"), Gate()
        names = ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]
        calls = [asyncio.ensure_future(threads.run(name[0], gate.work(name))) for name in names]
        await asyncio.sleep(0)  # all are queued
        gate.open.set()
        assert await asyncio.gather(*calls) == names
        assert gate.order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]
        threads.close()

    asyncio.run(scenario())


def test_a_cancelled_call_leaves_the_queue_and_a_failing_one_frees_its_thread() -> None:
    async def scenario() -> None:
        threads, gate = TenantThreads(1, "test"), Gate()
        calls = [asyncio.ensure_future(threads.run("a", gate.work(name))) for name in "xyz"]
        failing = asyncio.ensure_future(threads.run("a", lambda: 1 // 0))
        await asyncio.sleep(0)
        calls[0].cancel()  # it has begun
        calls[1].cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert await calls[2] == "z"
        assert gate.order == ["x", "z"]
        with pytest.raises(ZeroDivisionError):
            await failing
        assert await threads.run("b", lambda: 5) == 5
        threads.close()

    asyncio.run(scenario())


def test_a_closed_pool_starts_nothing() -> None:
    async def scenario() -> None:
        threads, gate = TenantThreads(1, "test"), Gate()
        calls = [asyncio.ensure_future(threads.run("a", gate.work(name))) for name in "xy"]
        await asyncio.sleep(0)
        threads.close()
        gate.open.set()
        assert await calls[0] == "x"
        assert gate.order == ["x"]
        calls[1].cancel()

    asyncio.run(scenario())
