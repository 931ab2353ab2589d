"""A server in a process of its own, for experiments over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from experiments.measure import resident_bytes

HOST = "127.0.0.1"
POLL_S = 0.2  # between two questions whether the server is ready


class ServerProcess(NamedTuple):
    """A running server: its base URL and its process id."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """Return its resident memory, bytes."""
        return resident_bytes(self.pid)

    def num_threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def num_handles(self) -> int:
        """Return the number of its open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@asynccontextmanager
async def server_process(flags: Sequence[str]) -> AsyncIterator[ServerProcess]:
    """Start a server process, and yield it once it is ready; SIGINT drains and ends it."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "kvflow_jax.serve", "--host", HOST, "--port", str(port)]
    process = subprocess.Popen([*command, *flags], cwd=Path(__file__).parents[2])
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            while True:
                if process.poll() is not None:
                    raise SystemExit(
                        f"the server ended with status {process.returncode}, see its log"
                    )
                try:
                    if (await client.get("/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(POLL_S)
        yield ServerProcess(url, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
