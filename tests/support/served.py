"""A server on a loopback port, on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import httpx

from kvflow_jax.serve.server import Server


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Yield the server's URL once it is ready; stop the server at the end."""
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while client.get("/ready").status_code != 200:
                assert thread.is_alive()
        yield server.url
    finally:
        server.should_exit = True
        thread.join()
