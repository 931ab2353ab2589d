"""One server of scripted tokens for each file of numbered requests, and its real clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import anthropic
import httpx
import numpy as np
import openai
import pytest

from tests.serve.serve_fakes import TIMEOUT_S
from tests.support.scripted_runner import ScriptedServer, scripted_server


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server(max_body_mib=0.25) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as claude:
        yield claude


@pytest.fixture
def break_after(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], threading.Event]:
    """Return a function after which the server samples so many tokens more.

    The step after them fails once the event that it returns is set: by a client that has read the
    beginning of its stream.
    """

    def arm(num_tokens: int) -> threading.Event:
        tokens, sample = iter(range(num_tokens)), server.runner.sample
        may_fail = threading.Event()

        def sample_or_fail(seq_slot: int, sequence: np.ndarray) -> int:
            if next(tokens, None) is None:
                assert may_fail.wait(TIMEOUT_S)
                raise RuntimeError("the device is gone")
            return sample(seq_slot, sequence)

        monkeypatch.setattr(server.runner, "sample", sample_or_fail)
        return may_fail

    return arm
