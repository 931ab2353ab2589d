"""HTTP clients whose requests have hints, with OpenAI's client and without."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from kvflow_jax.clients import async_http_client, http_client, run, step
from kvflow_jax.clients.hinting_client import _async_class, _post_end, _sync_class
from kvflow_jax.workflow.workflow import Workflow

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ho"}}
    ],
}


class Server:
    """Answers chats; ``statuses`` are those of the next answers, 200 afterwards."""

    def __init__(self, library: Any = httpx2) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self._library = library

    def __call__(self, request: Any) -> Any:
        assert request.headers["content-length"] == str(len(request.content))
        body = json.loads(request.content)
        self.bodies.append(body)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 400 and "agent_hints" in body:
            return self._library.Response(400, json={"error": {"message": "agent_hints: extra"}})
        return self._library.Response(status, json=ANSWER)

    @property
    def agents(self) -> list[str | None]:
        return [body.get("agent_hints", {}).get("agent_id") for body in self.bodies]


def chat(http: Any, **settings: Any) -> openai.OpenAI:
    settings = {"max_retries": 0} | settings
    return openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, **settings)


def ask(client: openai.OpenAI) -> str | None:
    answer = client.chat.completions.create(model="m", messages=MESSAGES)
    return answer.choices[0].message.content


def test_openai_sends_hints_within_a_step() -> None:
    server = Server()
    graph = Workflow().edge("a", "b")
    with http_client(graph, transport=httpx2.MockTransport(server)) as http:
        client = chat(http)
        assert ask(client) == "ho"
        with run("r"), step("a"):
            assert ask(client) == "ho"
    assert "agent_hints" not in server.bodies[0]
    hints = server.bodies[1]["agent_hints"]
    assert (hints["workflow_id"], hints["agent_id"]) == ("r", "a")
    assert Workflow.from_dict(hints["step_graph"]).freeze().names == ("a", "b")


def test_the_client_of_anthropic_sends_them_too() -> None:
    server = Server()
    with http_client(transport=httpx2.MockTransport(server)) as http, step("a"):
        client = anthropic.Anthropic(base_url="http://server", api_key="none", http_client=http)
        client.messages.create(model="m", max_tokens=8, messages=MESSAGES)
    assert server.agents == ["a"]


def test_a_retry_has_the_same_hints() -> None:
    server = Server()
    server.statuses = [503]
    with http_client(transport=httpx2.MockTransport(server)) as http:
        client = chat(http, max_retries=1)
        with run("r"), step("a"):
            assert ask(client) == "ho"
    assert server.bodies[0] == server.bodies[1]


def test_a_server_that_refuses_the_field_answers_without_it() -> None:
    server = Server()
    server.statuses = [400]
    with http_client(transport=httpx2.MockTransport(server)) as http, step("a"):
        client = chat(http)
        for _ in range(2):
            assert ask(client) == "ho"
    assert server.agents == ["a", None, None]


def test_an_error_that_is_not_of_the_hints_is_the_callers() -> None:
    server = Server()
    server.statuses = [422]
    with (
        http_client(transport=httpx2.MockTransport(server)) as http,
        step("a"),
        pytest.raises(openai.UnprocessableEntityError),
    ):
        ask(chat(http))
    assert server.agents == ["a"]


def test_a_client_may_be_closed_twice() -> None:
    http = http_client()
    http.close()
    http.close()
    assert http.is_closed


def test_coroutines() -> None:
    server = Server()
    server.statuses = [200, 200, 400]

    async def main() -> None:
        http = async_http_client(transport=httpx2.MockTransport(server))
        client = openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="none", http_client=http, max_retries=0
        )

        async def ask_as(name: str) -> None:
            async with step(name):
                await client.chat.completions.create(model="m", messages=MESSAGES)

        await asyncio.gather(ask_as("a"), ask_as("b"))
        await ask_as("refused")
        await client.chat.completions.create(model="m", messages=MESSAGES)
        await http.aclose()
        await http.aclose()

    asyncio.run(main())
    assert sorted(map(str, server.agents[:2])) == ["a", "b"]
    assert server.agents[2:] == ["refused", None, None]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Hide all HTTP libraries but one."""

    def only(library: str | None) -> None:
        for name in {"openai", "httpx2", "httpx"} - {library}:
            monkeypatch.setitem(sys.modules, name, None)
        _sync_class.cache_clear()
        _async_class.cache_clear()

    yield only
    monkeypatch.undo()
    _sync_class.cache_clear()
    _async_class.cache_clear()


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_without_openai_any_of_both_libraries_will_do(only: Any, library: Any) -> None:
    server = Server(library)
    only(library.__name__)
    http = http_client(transport=library.MockTransport(server))
    assert isinstance(http, library.Client)
    with http, step("a"):
        http.post("http://server/v1/responses", json={"input": "hi"}).raise_for_status()
    assert server.agents == ["a"]
    assert isinstance(async_http_client(), library.AsyncClient)


def test_without_any_library_the_error_says_what_to_install(only: Any) -> None:
    only(None)
    with pytest.raises(ImportError, match="pip install openai"):
        http_client()


def test_a_graph_of_no_known_kind() -> None:
    with pytest.raises(TypeError, match="compiled LangGraph app"):
        http_client(graph="planner")
    assert http_client().bind({"nodes": ["a"]}).gaps == []


def test_the_end_of_a_run_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[Any] = []

    def handle(client: object, request: httpx2.Request) -> httpx2.Response:
        posted.append((str(request.url), request.headers["authorization"], request.content))
        return httpx2.Response(len(posted) * 100 + 100)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", handle)
    for expected in (200, 300):
        url = f"http://server/v1/workflows/r{expected}/advance"
        if expected == 200:
            _post_end({}, url, {"authorization": "Bearer key"}, {"finished": True})
        else:
            with pytest.raises(httpx2.HTTPStatusError):
                _post_end({}, url, {"authorization": "Bearer key"}, {"finished": True})
    _post_end(None, "http://server", {}, {})
    assert [content for *_, content in posted] == [b'{"finished":true}'] * 2
