"""Request 42: a stream whose first token takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from kvflow_jax.serve import stream
from tests.serve.serve_fakes import TIMEOUT_S
from tests.serve.serve_requests import CHAT, HELLO
from tests.support.scripted_runner import MODEL, ScriptedServer


@pytest.fixture
def may_answer(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[threading.Event]:
    """Hold every step until this event is set; an idle stream says so every 10 ms."""
    event, submit = threading.Event(), server.runner.submit

    def hold(batch: Any) -> Any:
        assert event.wait(TIMEOUT_S)
        return submit(batch)

    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.01)
    monkeypatch.setattr(server.runner, "submit", hold)
    yield event
    event.set()


@contextmanager
def lines_of(http: httpx.Client, path: str, **body: Any) -> Iterator[Iterator[str]]:
    with http.stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.status_code == 200
        yield answer.iter_lines()


@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        (CHAT, {"messages": HELLO}, ": keep-alive"),
        ("/v1/completions", {"prompt": "a"}, ": keep-alive"),
        ("/v1/responses", {"input": "a"}, ": keep-alive"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 8}, "event: ping"),
    ],
)
def test_42_a_stream_is_kept_alive(
    server: ScriptedServer,
    http: httpx.Client,
    may_answer: threading.Event,
    path: str,
    body: dict[str, Any],
    line: str,
) -> None:
    server.script("x")
    with lines_of(http, path, **body) as lines:
        assert line in lines  # reads up to it
        may_answer.set()
        assert any('"x"' in line for line in lines)


def test_42_real_clients_skip_what_keeps_a_stream_alive(
    server: ScriptedServer,
    http: httpx.Client,
    client: openai.OpenAI,
    claude: anthropic.Anthropic,
    may_answer: threading.Event,
) -> None:
    def answer_after_a_keep_alive() -> None:
        with lines_of(http, CHAT, messages=HELLO) as lines:
            assert ": keep-alive" in lines
            may_answer.set()

    server.script("late", "late", "late")
    waiter = threading.Thread(target=answer_after_a_keep_alive)
    waiter.start()
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO}
    with client.chat.completions.stream(**asked) as events:
        completion = events.get_final_completion()
    assert completion.choices[0].message.content == "late"
    waiter.join()
    with claude.messages.stream(**asked, max_tokens=8) as events:
        assert events.get_final_text() == "late"
