"""A proxy that keeps calls with the run and the agent that made them, which their URLs name.

client ── /RUN/AGENT/v1/... ──▶ proxy ── /v1/..., return_token_ids ──▶ server
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from experiments.zero_hints.recording import Call


class LabellingProxy(ThreadingHTTPServer):
    """Passes chats that are not streamed on to a server, and keeps them.

    Args:
        server_url: of the server.

    Attributes:
        calls: in the order in which they ended.
    """

    request_queue_size = 64

    def __init__(self, server_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self._http = httpx.Client(base_url=server_url, timeout=600)
        self._lock = threading.Lock()
        self._begin = time.monotonic()

    def server_close(self) -> None:
        super().server_close()
        self._http.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def forward(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer of the server to a call."""
        _, run, agent, route = path.split("/", 3)
        begin_s = time.monotonic() - self._begin
        answer = self._http.post(f"/{route}", json={**body, "return_token_ids": True})
        end_s = time.monotonic() - self._begin
        content = answer.json()
        if answer.status_code == 200:
            choice = content["choices"][0]
            # What the client did not ask for does not reach it.
            prompt_ids, answer_ids = content.pop("prompt_token_ids"), choice.pop("token_ids")
            message = choice["message"]
            calls = [call["function"] for call in message.get("tool_calls") or []]
            call = Call(
                run=run,
                agent=agent,
                begin_s=round(begin_s, 3),
                end_s=round(end_s, 3),
                messages=body["messages"],
                tools=body.get("tools") or [],
                answer=message["content"] or json.dumps(calls),
                prompt_ids=prompt_ids,
                answer_ids=answer_ids,
            )
            with self._lock:
                self.calls.append(call)
        return answer.status_code, content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LabellingProxy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, content = self.server.forward(self.path, body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def labelling_proxy(server_url: str) -> Iterator[LabellingProxy]:
    """Yield a proxy in front of a server."""
    proxy = LabellingProxy(server_url)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
