from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.serve_fakes import FakeEngine, LiveServer, live_server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LiveServer]:
    with live_server(max_body_mib=0.25) as live:
        yield live


@pytest.fixture
def live(shared_server: LiveServer) -> LiveServer:
    """The shared server, with its fake engine reset."""
    shared_server.engine.settle()
    shared_server.engine.reset()
    return shared_server


@pytest.fixture
def engine(live: LiveServer) -> FakeEngine:
    return live.engine


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        yield client
