"""Hints of requests, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from kvflow_jax.clients.call import Call
from kvflow_jax.clients.callers import Callers
from kvflow_jax.clients.hinter import Hinter, hints_of
from kvflow_jax.clients.run_ends import RunEnds
from kvflow_jax.clients.runs import Run
from kvflow_jax.clients.scopes import run_scope, step_scope

URL = "http://server/v1/chat/completions"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Setting:
    def __init__(self) -> None:
        self.ended: list[tuple[str, dict[str, str], dict[str, object]]] = []
        self.callers = Callers()
        self.ends = RunEnds(self._post)
        self.hinter = Hinter(self.callers, self.ends)

    def _post(self, url: str, headers: Mapping[str, str], body: Mapping[str, object]) -> None:
        self.ended.append((url, dict(headers), dict(body)))

    def hints(self, body: Any = CHAT, url: str = URL, **settings: Any) -> dict[str, Any] | None:
        """Return the hints that a request of an agent gets."""
        request = httpx2.Request(settings.pop("method", "POST"), url, json=body, **settings)
        with step_scope("a", None):
            hinted = self.hinter.prepare(request)
        if hinted is None:
            return None
        found: dict[str, Any] = json.loads(hinted.request.content)["agent_hints"]
        return found


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_a_request_keeps_all_but_its_length(setting: Setting) -> None:
    headers = [("x-a", "1"), ("X-A", "2"), ("authorization", "Bearer key")]
    request = httpx2.Request(
        "POST", f"{URL}?q=1", json=CHAT, headers=headers, extensions={"timeout": {"read": 3}}
    )
    with run_scope("r", None), step_scope("a", "s"):
        hinted = setting.hinter.prepare(request)
    assert hinted is not None
    sent = hinted.request
    assert json.loads(sent.content) == CHAT | {
        "agent_hints": {"workflow_id": "r", "agent_id": "a", "session_id": "s"}
    }
    assert sent.headers["content-length"] == str(len(sent.content))
    same = dict(request.headers) | {"content-length": None}
    assert dict(sent.headers) | {"content-length": None} == same
    assert sent.headers.get_list("x-a") == ["1", "2"]
    assert (str(sent.url), sent.extensions) == (f"{URL}?q=1", request.extensions)
    assert json.loads(request.content) == CHAT  # what is sent again, after a refusal


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://server/v1/embeddings"},
        {"method": "PUT"},
        {"headers": {"content-type": "text/plain"}},
        {"headers": {"content-encoding": "gzip"}},
        {"body": [1]},
        {"body": CHAT | {"agent_hints": {"agent_id": "own"}}},
    ],
)
def test_other_requests_are_left_alone(setting: Setting, settings: dict[str, Any]) -> None:
    assert setting.hints(**settings) is None


def test_streams_and_forms_are_left_alone(setting: Setting) -> None:
    def chunks() -> Any:
        yield b"{}"

    json_type = {"content-type": "application/json", "content-length": "2"}
    for request in (
        httpx2.Request("POST", URL, content=chunks(), headers=json_type),
        httpx2.Request("POST", URL, files={"f": b"{}"}, data={"a": "b"}),
        httpx2.Request("POST", URL),
    ):
        with step_scope("a", None):
            assert setting.hinter.prepare(request) is None


def test_without_a_known_call_nothing_is_added(setting: Setting) -> None:
    assert setting.hinter.prepare(httpx2.Request("POST", URL, json=CHAT)) is None


def test_an_error_is_logged_once_and_the_request_sent(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Call | None:
        raise KeyError("broken")

    monkeypatch.setattr(setting.callers, "current", fail)
    assert setting.hints() is None
    assert setting.hints() is None
    broken: Any = object()
    setting.hinter.note_answer(broken, broken)
    assert caplog.text.count("without hints") == 1
    assert len(caplog.records) == 1


def test_the_graph_is_that_of_the_run_or_of_the_client(setting: Setting) -> None:
    with run_scope("r", lambda first: f'{{"nodes":["{first}"]}}'):
        hints = setting.hints()
    assert hints is not None
    assert hints["step_graph"] == {"nodes": ["a"]}
    setting.callers.bind({"nodes": ["a", "b"]})
    with run_scope("r", None):
        hints = setting.hints()
    assert hints is not None
    assert [node["id"] for node in hints["step_graph"]["nodes"]] == ["a", "b"]
    assert setting.hints() == {"agent_id": "a"}  # a graph is that of a run


def test_a_conversation_is_named_once_it_is_seen_to_continue(setting: Setting) -> None:
    longer = CHAT | {"messages": [*CHAT["messages"], {"role": "assistant", "content": "ho"}]}
    with run_scope("r", None):
        first, second = setting.hints(), setting.hints(longer)
    assert first == {"workflow_id": "r", "agent_id": "a"}
    assert second == {**first, "session_id": "r:a"}


def test_names_of_10_000_characters_are_shortened(setting: Setting) -> None:
    with run_scope("r" * 10_000, None) as run, step_scope("n" * 10_000, "s" * 10_000) as call:
        hints = setting.hints()
        assert setting.hinter.prepare(httpx2.Request("POST", URL, json=CHAT)) is not None
    assert hints is not None
    assert all(len(str(name)) <= 256 for name in (run.id, call.agent, call.session))


def test_a_server_that_refuses_the_field_gets_it_no_more(setting: Setting) -> None:
    request = httpx2.Request("POST", URL, json=CHAT)
    with step_scope("a", None):
        hinted = setting.hinter.prepare(request)
    assert hinted is not None
    assert setting.hinter.is_refusal(httpx2.Response(400))
    assert not setting.hinter.is_refusal(httpx2.Response(429))
    assert not setting.hinter.refuses(hinted, b'{"error": "max_tokens is too large"}')
    assert setting.hints() is not None
    assert setting.hinter.refuses(hinted, b"Unrecognized request argument supplied: agent_hints")
    assert setting.hints() is None
    assert setting.hints(url="http://another/v1/responses") is not None


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_server_of_this_project_is_told_of_the_end(setting: Setting, is_ours: bool) -> None:
    run = Run("task/1?")
    headers = {"authorization": "Bearer key", "x-other": "1"}
    request = httpx2.Request("POST", "https://server/base/v1/responses?x=1", headers=headers)
    monitored = Call("a", run)
    with run_scope("r", None), step_scope("a", None):
        hinted = setting.hinter.prepare(
            httpx2.Request("POST", request.url, json=CHAT, headers=headers)
        )
    assert hinted is not None
    hinted = type(hinted)(hinted.request, monitored, hinted.route)
    answer = httpx2.Response(200, headers={"x-kvflow-hint-status": "applied"} if is_ours else {})
    for _ in range(2):
        setting.hinter.note_answer(hinted, answer)
    run.end()
    setting.ends.wait()
    url = "https://server/base/v1/workflows/task%2F1%3F/advance"
    end = (url, {"authorization": "Bearer key"}, {"finished": True})
    assert setting.ended == [end] * is_ours


def test_a_conversation_that_goes_on_is_kept_at_the_end_of_its_run(setting: Setting) -> None:
    answer = httpx2.Response(200, headers={"x-kvflow-hint-status": "applied"})
    for session in (None, "chat-1"):
        with run_scope("r", None), step_scope("a", session):
            hinted = setting.hinter.prepare(httpx2.Request("POST", URL, json=CHAT))
            assert hinted is not None
            setting.hinter.note_answer(hinted, answer)
    setting.ends.wait()
    kept = [body.get("keep_sessions", False) for *_, body in setting.ended]
    assert kept == [False, True]


def test_hints_of_a_call() -> None:
    assert hints_of(Call(None)) == {}
    assert hints_of(Call("a", Run("r"), "s")) == {
        "workflow_id": "r",
        "agent_id": "a",
        "session_id": "s",
    }
