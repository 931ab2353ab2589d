"""Commands of the servers, and a server that answers or ends."""

import sys

import pytest

from experiments.peers import servers
from experiments.peers.arms import ARMS, Setup
from experiments.peers.environment import Environment
from experiments.peers.servers import COMMANDS, ServerSpec, run_load
from experiments.peers.weights import PeerWeights

SPEC = ServerSpec("model", 8123, kv_bytes=1 << 29, kv_tokens=16_000, num_seqs=4, flags=("--a",))
BY_NAME = {arm.name: arm for arm in ARMS}
ANSWER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"data: {}\\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def setup(tmp_path):
    environments = {name: Environment(name, tmp_path / name) for name in ("vllm", "llama_cpp")}
    return Setup(environments, PeerWeights(tmp_path), "tiny")


@pytest.mark.parametrize(
    ("arm", "flags"),
    [
        ("kvflow-int8", "--pool-gib 0.5 --quantize=int8 --max-num-seqs 4 --a"),
        ("vllm-bfloat16", f"--kv-cache-memory-bytes {1 << 29} --dtype bfloat16 --max-num-seqs 4"),
        ("llama_cpp-Q8_0", "--ctx-size 16000 --parallel 4 --alias model"),
    ],
)
def test_a_command_has_the_memory_and_the_mode(setup, arm, flags):
    command = " ".join(COMMANDS[BY_NAME[arm].engine](setup, BY_NAME[arm], SPEC))
    assert "--port 8123" in command
    words = flags.split()
    for i, word in enumerate(words):
        if word.startswith("--"):
            value = words[i + 1 : i + 2]
            expected = word if not value or value[0].startswith("--") else f"{word} {value[0]}"
            assert expected in command


class FakeLoad:
    peers_load, num_seqs = "fake", 2

    def kv_bytes(self, numbers_per_token):
        return 100 * numbers_per_token

    def run(self, client):
        client.complete([1], 1)
        return {"makespan_s": 1.0, "num": len(client.ttfts_s)}


def run(setup, program, monkeypatch):
    command = lambda setup, arm, spec: [sys.executable, "-c", program, str(spec.port)]  # noqa: E731
    monkeypatch.setitem(servers.COMMANDS, "kvflow", command)
    return run_load(ARMS[0], setup, FakeLoad(), numbers_per_token=8, vocab=(0, 256))


def test_a_load_runs_on_a_ready_server(setup, monkeypatch):
    figures = run(setup, ANSWER, monkeypatch)
    assert figures == {"kv_bytes": 800, "makespan_s": 1.0, "num": 1}


def test_a_server_that_ends_is_a_reason(setup, monkeypatch):
    figures = run(setup, "raise SystemExit('unknown flag --quantize')", monkeypatch)
    assert figures == {"failed": "unknown flag --quantize"}


def test_a_server_that_is_never_ready_is_a_reason(setup, monkeypatch):
    monkeypatch.setattr(servers, "READY_S", 0.0)
    figures = run(setup, "import threading; threading.Event().wait()", monkeypatch)
    assert "not ready" in figures["failed"]
