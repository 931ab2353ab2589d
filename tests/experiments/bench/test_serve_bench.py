"""``experiments.serve_bench`` against a small HTTP server on the loopback interface."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from experiments.bench import serve_bench, server_process


class Handler(BaseHTTPRequestHandler):
    prompts = ()

    def do_GET(self):
        self.answer(b"{}", "application/json")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.prompts = (*Handler.prompts, body["prompt"])
        self.answer(b'data: {"a": 1}\n\ndata: {"a": 2}\n\ndata: [DONE]\n\n', "text/event-stream")

    def answer(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class FakeProcess:
    """Serves in a thread what ``kvflow_jax.serve`` would serve in a process."""

    commands = ()

    def __init__(self, command, **_):
        FakeProcess.commands = (*FakeProcess.commands, command)
        port = int(command[command.index("--port") + 1])
        self._server = ThreadingHTTPServer((server_process.HOST, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    pid = 0

    def poll(self):
        return None

    def send_signal(self, _):
        self._server.shutdown()

    def wait(self, timeout):
        self._thread.join()
        self._server.server_close()


def test_a_quick_benchmark_measures_idle_and_busy(command, monkeypatch, tmp_path):
    monkeypatch.setattr(server_process, "subprocess", SimpleNamespace(Popen=FakeProcess))
    path = tmp_path / "out.json"
    assert command(serve_bench, "--quick", "--seconds", 0.05, "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    assert figures["num_clients"] == 2
    assert {"health_idle_p50_ms", "health_busy_p99_ms", "between_chunks_max_ms"} <= figures.keys()
    (started,) = FakeProcess.commands
    assert "--deterministic" in started
    assert all(0 <= token < 256 for prompt in Handler.prompts for token in prompt)


def test_a_server_that_ends_is_an_error(command, monkeypatch):
    class Ended(FakeProcess):
        returncode = 3

        def poll(self):
            return 3

    monkeypatch.setattr(server_process, "subprocess", SimpleNamespace(Popen=Ended))
    with pytest.raises(SystemExit, match="status 3"):
        command(serve_bench, "--quick")


def test_a_spread_has_milliseconds():
    assert serve_bench.spread_ms([0.001, 0.002, 0.003])["p50_ms"] == pytest.approx(2.0)
    assert serve_bench.spread_ms([0.001, 0.004])["max_ms"] == pytest.approx(4.0)
