"""The process that asks /health."""

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from experiments.load import health_watch


@pytest.fixture
def port():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_latencies_are_printed_when_the_input_ends(port, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["health_watch.py", "127.0.0.1", str(port)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    health_watch.main()
    first, latencies = capsys.readouterr().out.splitlines()
    assert first == "watching"
    assert all(0 < one < 60 for one in json.loads(latencies))


def test_a_server_that_is_not_there_gives_none():
    assert health_watch.ask("127.0.0.1", 9) is None
