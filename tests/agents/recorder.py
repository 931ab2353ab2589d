"""A proxy between an agent and a server, that keeps what passed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.agents.agent import SUMMARY, TASK
from tests.agents.answers import read_answer

_HOP_BY_HOP = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}
_KEEP_ALIVES = (b":", b"event: ping")


@dataclass
class Exchange:
    """A request and its answer, as ``read_answer`` reads it.

    Attributes:
        first_byte_s: from the request to the answer's first byte, keep-alives aside.
    """

    method: str
    path: str  # with its query
    headers: dict[str, str]  # names in lower case
    body: Any
    status: int
    answer: Any
    first_byte_s: float = 0.0

    @property
    def has_tools(self) -> bool:
        """True of a turn of an agent, false of a title or a list of models."""
        return isinstance(self.body, dict) and bool(self.body.get("tools"))


@dataclass
class Recorder:
    """Serves on a loopback port what the server at ``upstream`` answers."""

    upstream: str
    exchanges: list[Exchange] = field(default_factory=list)  # in the order of their requests

    def __enter__(self) -> Recorder:
        self._lock = threading.Lock()
        recorder = self

        class Handler(_Handler):
            owner = recorder

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def begin(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Exchange:
        """Keep a request, at once: an agent may leave before its answer."""
        try:
            value = json.loads(body) if body else None
        except ValueError:
            value = body.decode("utf-8", "replace")
        exchange = Exchange(method, path, headers, value, 0, None)
        with self._lock:
            self.exchanges.append(exchange)
        return exchange


def threads_of(exchanges: Iterable[Exchange]) -> list[list[Exchange]]:
    """Return the turns that were answered, those of the agent and those of its subagents apart.

    Subagents have tools or a task of their own. A session that goes on from a summary is a thread
    of its own, too.
    """
    threads: dict[object, list[Exchange]] = {}
    for one in exchanges:
        if one.has_tools and one.status == 200:
            body, tools = json.dumps(one.body), json.dumps(one.body["tools"])
            threads.setdefault((tools, TASK in body, SUMMARY in body), []).append(one)
    return list(threads.values())


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # its end waits until every answer is kept


class _Handler(BaseHTTPRequestHandler):
    owner: Recorder
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        self._pass_on()

    do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        exchange = self.owner.begin(self.command, self.path, headers, body)
        onward = {name: value for name, value in headers.items() if name not in _HOP_BY_HOP}
        pieces: list[bytes] = []
        begin_s = time.monotonic()
        with (
            httpx.Client(timeout=None) as client,
            client.stream(
                self.command, self.owner.upstream + self.path, headers=onward, content=body
            ) as answer,
        ):
            exchange.status = answer.status_code
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name not in _HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            # No length is known before the end: the end of the connection is the end of the answer.
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            for piece in answer.iter_raw():
                pieces.append(piece)
                if not exchange.first_byte_s and not piece.startswith(_KEEP_ALIVES):
                    exchange.first_byte_s = time.monotonic() - begin_s
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:  # the agent has left
                    break
        content_type = answer.headers.get("content-type", "")
        exchange.answer = read_answer(content_type, b"".join(pieces))
