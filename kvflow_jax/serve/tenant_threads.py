"""Threads for work of requests that takes milliseconds of CPU; tenants take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kvflow_jax.bounds.tenant_queue import TenantQueue

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    result: asyncio.Future[Any]


class TenantThreads:
    """A thread pool with a queue for each tenant, served round robin. Runs on the event loop.

    A tenant with a thousand calls waiting delays another by the calls that have begun, one for each
    thread, not by the thousand. A call whose task is cancelled leaves the queue; one that has begun
    runs to its end.

    Args:
        name: prefix of the names of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_free = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._waiting: TenantQueue[_Job] = TenantQueue()

    async def run(self, tenant: str, work: Callable[[], Result]) -> Result:
        """Return ``work()``, called on a thread when the tenant's turn comes."""
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.push(tenant, job)
        self._start_jobs()
        result: Result = await job.result
        return result

    def close(self) -> None:
        """Start no more calls."""
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start_jobs(self) -> None:
        while self._num_free and len(self._waiting):
            job = self._waiting.pop()
            if job.result.cancelled():
                continue
            self._num_free -= 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, job.work)
            running.add_done_callback(partial(self._finish, job))

    def _finish(self, job: _Job, done: asyncio.Future[Any]) -> None:
        self._num_free += 1
        if done.cancelled():  # the pool was closed
            job.result.cancel()
        elif (error := done.exception()) is not None:
            if not job.result.done():
                job.result.set_exception(error)
        elif not job.result.done():
            job.result.set_result(done.result())
        self._start_jobs()
