"""Servers on a loopback port, each on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import httpx

from kvflow_jax.serve.command_line import parse_config
from kvflow_jax.serve.launch import build_engine
from kvflow_jax.serve.server import Server, bind


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


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Yield the URL of a server of the embedded model, as ``make serve`` starts it.

    Its pool is small, and it has the user's cache folder. Blocks of the documentation that make an
    ``LLM`` give it the same sizes, so that their programs are compiled once.
    """
    config = parse_config(["--port", "0", "--pool-gib", "0.5", "--max-num-seqs", "4"])
    with running(Server(config, bind("127.0.0.1", 0), build_engine)) as url:
        yield url
