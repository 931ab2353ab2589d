"""The agentic loads against clients and a server that answer at once."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments.peers import loads
from experiments.peers.loads import QUICK_LOADS, AgentCycle, Client, CodingSessions


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    return Client(f"http://127.0.0.1:{server.server_port}", (0, 256))


def test_a_cycle_asks_every_agent_in_every_round(server, client):
    figures = QUICK_LOADS["agents_cycle_hints"].run(client)
    assert len(figures["rounds_s"]) == 2
    assert figures["makespan_s"] == figures["rounds_s"][1]
    first, again = server.bodies[0], server.bodies[4]
    assert first["prompt"][:96] == again["prompt"][:96] != server.bodies[1]["prompt"][:96]
    assert first["prompt"][96:] != again["prompt"][96:]
    hints = first["agent_hints"]
    assert hints["agent_id"] == again["agent_hints"]["agent_id"] == "agent-0"
    assert {"source": "agent-3", "target": "agent-0"} in hints["step_graph"]["edges"]


def test_the_cycle_without_hints_sends_the_same_prompts(server, client):
    with_hints = QUICK_LOADS["agents_cycle_hints"]
    replace(with_hints, with_hints=False).run(client)
    prompts = [body["prompt"] for body in server.bodies]
    assert not any("agent_hints" in body for body in server.bodies)
    server.bodies.clear()
    with_hints.run(client)
    assert [body["prompt"] for body in server.bodies] == prompts


def test_a_session_continues_its_history(server, client):
    figures = QUICK_LOADS["coding_sessions"].run(client)
    assert figures["makespan_s"] >= figures["completion_mean_s"]
    prompts = sorted((body["prompt"] for body in server.bodies), key=len)
    assert [len(prompt) for prompt in prompts] == [48, 48, 68, 68]
    assert {tuple(prompt[:48]) for prompt in prompts[2:]} == {tuple(p) for p in prompts[:2]}
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 1


def test_four_agents_fit_in_16_bits_and_all_sessions_in_32():
    cycle, sessions = AgentCycle(), CodingSessions()
    assert 4 <= cycle.kv_bytes(1000) / (2 * 1000 * (4096 + 32 + 16)) < 5
    longest = sessions.system_len + 6 * (sessions.turn_len + sessions.output_len)
    assert sessions.kv_bytes(1000) >= 8 * longest * 1000 * 4


def test_every_load_of_this_engine_has_one_of_the_peers():
    assert {load.peers_load for load in loads.LOADS.values()} <= loads.LOADS.keys()
