"""A server of an experiment is yielded when it is ready, and ended."""

import asyncio
import signal
import socket
from types import SimpleNamespace

import httpx
import pytest

from experiments.bench import server_process


class Process:
    """A process that is ready at the third question, or has ended."""

    pid, returncode = 7, 3

    def __init__(self, command, has_ended=False, **_):
        self.command, self.has_ended = command, has_ended
        self.num_asked, self.signals = 0, []

    def poll(self):
        return self.returncode if self.has_ended else None

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self, timeout):
        assert self.signals == [signal.SIGINT]

    def answer(self, request):
        self.num_asked += 1
        if self.num_asked == 1:
            raise httpx.ConnectError("not listening yet")
        return httpx.Response(200 if self.num_asked > 2 else 503)


@pytest.fixture
def start(monkeypatch):
    """Starts the process that is given in place of a server; returns what was yielded."""
    monkeypatch.setattr(server_process, "POLL_S", 0.0)
    client = httpx.AsyncClient

    def run(process):
        def popen(command, **_):
            process.command = command
            return process

        async def enter():
            async with server_process.server_process(["--flag"]) as server:
                return server

        monkeypatch.setattr(server_process, "subprocess", SimpleNamespace(Popen=popen))
        transport = httpx.MockTransport(process.answer)
        monkeypatch.setattr(
            server_process.httpx,
            "AsyncClient",
            lambda base_url: client(base_url=base_url, transport=transport),
        )
        return asyncio.run(enter())

    return run


def test_a_server_is_yielded_when_it_is_ready_and_ended_afterwards(start):
    process = Process(())
    server = start(process)
    assert (server.pid, process.num_asked) == (7, 3)
    assert process.signals == [signal.SIGINT]
    assert process.command[-1] == "--flag"
    assert server.url == f"http://{server_process.HOST}:{process.command[-2]}"


def test_a_server_that_ends_is_an_error(start):
    with pytest.raises(SystemExit, match="status 3"):
        start(Process((), has_ended=True))


def test_a_free_port_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind((server_process.HOST, server_process.free_port()))
