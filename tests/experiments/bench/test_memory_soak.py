"""``experiments.memory_soak``: what it compares, and the slope that it prints."""

import asyncio
import json
import math
import os
from types import SimpleNamespace

import httpx
import pytest

from experiments.bench import memory_soak
from experiments.bench.memory_soak import Soak, slope_mb_per_minute
from experiments.bench.server_process import ServerProcess


class Server:
    """Answers every request; its text changes after the number of completions that is given."""

    def __init__(self, num_right):
        self.num_right, self.paths = num_right, []

    def __call__(self, request):
        self.paths.append((request.method, request.url.path))
        if request.url.path == "/metrics":
            return httpx.Response(200, text='kvflow:tenant_state_bytes{state="runs"} 7.0\n')
        if request.url.path != "/v1/completions":
            return httpx.Response(200, json={"choices": [{"message": {"role": "assistant"}}]})
        if json.loads(request.content)["max_tokens"] < 0:
            return httpx.Response(400)
        self.num_right -= 1
        text = "right" if self.num_right >= 0 else "wrong"
        return httpx.Response(200, json={"choices": [{"text": text}]})


class Process:
    """Stands for ``server_process``."""

    def __init__(self, flags):
        self.flags = flags

    async def __aenter__(self):
        return ServerProcess("http://soak", os.getpid())

    async def __aexit__(self, *_):
        pass


@pytest.fixture
def soak(command, monkeypatch, tmp_path):
    """Runs the command on a server in memory, for 600 requests; returns status and figures."""
    client = httpx.AsyncClient

    def run(server):
        monkeypatch.setattr(memory_soak, "server_process", Process)
        monkeypatch.setattr(
            memory_soak.httpx,
            "AsyncClient",
            lambda **options: client(
                base_url=options["base_url"], transport=httpx.MockTransport(server)
            ),
        )
        clock = SimpleNamespace(monotonic=lambda: len(server.paths) * 0.001)
        monkeypatch.setattr(memory_soak, "time", clock)
        monkeypatch.setattr(memory_soak, "SAMPLE_S", 0.001)
        path = tmp_path / "out.json"
        status = command(memory_soak, "--quick", "--minutes", 0.01, "--json", path)[0]
        return status, json.loads(path.read_text())

    return run


def test_requests_of_every_kind_are_sent(soak):
    server = Server(num_right=10**9)
    status, figures = soak(server)
    assert (status, figures["wrong_texts"]) == (0, 0)
    kinds = {answer.split()[0] for answer in figures["answers"]}
    assert kinds == {
        *("compared", "workflow", "conversation", "tools", "leaves", "registers", "wrong")
    }
    assert server.paths[:2] == [("POST", "/v1/chat/completions"), ("POST", "/v1/completions")]
    assert {method for method, _ in server.paths} == {"GET", "POST", "PUT", "DELETE"}
    assert figures["requests"] == sum(figures["answers"].values())
    assert figures["kept_mb"] == {"runs": 7e-6}


def test_a_text_that_changes_fails_the_command(soak, monkeypatch):
    monkeypatch.setattr(memory_soak, "NUM_PROMPTS", 2)
    status, figures = soak(Server(num_right=10))
    assert status == 1
    assert figures["wrong_texts"] > 0


def test_the_slope_is_that_of_what_follows_the_start():
    memory = [(0.0, 1), (10.0, 2), *((60.0 * m, int(5e6 + 2e6 * m)) for m in range(1, 5))]
    assert slope_mb_per_minute(memory, settle_s=30.0) == pytest.approx(2.0)


def test_a_single_sample_has_no_slope():
    assert math.isnan(slope_mb_per_minute([(0.0, 1), (60.0, 2)], settle_s=30.0))


def test_a_client_that_waits_too_long_is_counted():
    async def run():
        def time_out(request):
            raise httpx.ReadTimeout("too slow")

        found, stop = Soak(1), asyncio.Event()
        transport = httpx.MockTransport(time_out)
        async with httpx.AsyncClient(base_url="http://soak", transport=transport) as http:
            asyncio.get_running_loop().call_later(0.05, stop.set)
            await found._client(http, 0, stop)
        return found.statuses

    statuses = asyncio.run(run())
    assert statuses
    assert {status for _, status in statuses} == {0}
