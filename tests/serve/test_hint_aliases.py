"""Hints under other names: where they are found, which count, and what is told of the others."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from kvflow_jax.serve.hint_aliases import MAX_TEXT_CHARS, read_given_hints
from kvflow_jax.workflow.hints import HintParser
from tests.serve.serve_fakes import FakeEngine

HINTS = {"agent_id": "a", "workflow_id": "w"}
GRAPH = {"nodes": ["a", "b"], "edges": [{"source": "a", "target": "b"}]}


def in_header(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def forms(hints: Any) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Headers and body of a request that gives hints in each form."""
    return [
        ({}, {"agent_hints": hints}),
        ({}, {"agent_hint": hints}),
        ({}, {"vllm_xargs": {"agentic_context": hints}}),
        ({}, {"vllm_xargs": {"agentic_context": json.dumps(hints)}}),
        ({}, {"nvext": {"agent_hints": hints}}),
        ({"x-kvflow-hint": in_header(hints)}, {}),
        ({"x-agent-hint": in_header(hints)}, {}),
    ]


def read(headers: dict[str, str], own: Any, fields: dict[str, Any]) -> tuple[Any, bool]:
    given = read_given_hints(headers, own, fields)
    assert given is not None
    return given


@pytest.mark.parametrize("form", range(7))
def test_hints_are_found_under_each_name(form: int) -> None:
    headers, fields = forms({**HINTS, "step_graph": GRAPH})[form]
    own = fields.pop("agent_hints", None)
    assert read(headers, own, fields) == ({**HINTS, "step_graph": GRAPH}, False)


def test_a_request_without_hints_has_none() -> None:
    assert read_given_hints({}, None, {"vllm_xargs": 5, "nvext": {}, "agent_hint": None}) is None
    assert read({}, {}, {}) == ({}, False)


def test_the_first_name_counts_for_each_field() -> None:
    fields = {
        "agent_hint": {"agent_id": "a", "session_id": None, "priority": 1},
        "nvext": {"agent_hints": {"priority": 1, "session_id": "s"}},
    }
    expected = {"agent_id": "a", "priority": 1, "session_id": "s"}
    assert read({}, {"agent_id": "a"}, fields) == (expected, False)
    # Two forms that contradict each other cannot both be used.
    assert read({}, {"agent_id": "b"}, fields) == ({**expected, "agent_id": "b"}, True)


@pytest.mark.parametrize("name", ["task_id", "root_program_id", "program_id", "prefix_id"])
def test_a_run_has_other_names(name: str) -> None:
    assert read({}, {name: "w"}, {}) == ({"workflow_id": "w"}, False)
    assert read({}, {name: "w", "workflow_id": "w"}, {}) == ({"workflow_id": "w"}, False)
    assert read({}, {name: "w", "workflow_id": "v"}, {}) == ({"workflow_id": "v"}, True)


def test_the_root_program_is_the_run_of_its_programs() -> None:
    hints = {"program_id": "child", "root_program_id": "root"}
    assert read({}, hints, {}) == ({"workflow_id": "root"}, True)


@pytest.mark.parametrize(
    ("hints", "fields", "is_clipped"),
    [
        ({"session_id": "s", "cache_control": {"type": "ephemeral", "ttl": 5}}, {}, False),
        ({"cache_control": {"ttl": 5}}, {"reuse_hint": "keep"}, False),
        ({"reuse_hint": "neutral", "cache_control": {"ttl": 5}}, {"reuse_hint": "neutral"}, False),
        ({"session_id": "s", "cache_control": {"ttl": 5}, "cache_ttl_ms": 5000}, {}, False),
        ({"session_id": "s", "cache_control": {"ttl": 9}, "cache_ttl_ms": 5000}, {}, True),
    ],
)
def test_the_cache_control_of_vllm_is_a_time_to_live(
    hints: dict[str, Any], fields: dict[str, Any], is_clipped: bool
) -> None:
    session = {"session_id": "s"} if "session_id" in hints else {}
    expected = {**session, **fields, "cache_ttl_ms": 5000}
    assert read({}, None, {"agent_hint": hints}) == (expected, is_clipped)


def test_a_cache_control_without_a_time_lasts_as_vllm_says() -> None:
    hints, _ = read({}, None, {"agent_hint": {"session_id": "s", "cache_control": {}}})
    assert HintParser(hints).parse().ttl_s == 300.0


@pytest.mark.parametrize("control", ["5m", {"type": "persistent"}, {"ttl": "5m"}, {"ttl": True}])
def test_another_cache_control_is_not_read(control: Any) -> None:
    hints, _ = read({}, None, {"agent_hint": {"session_id": "s", "cache_control": control}})
    parsed = HintParser(hints).parse()
    assert (parsed.is_clipped, parsed.ttl_s) == (True, None)


def test_what_cache_control_has_beside_is_not_read() -> None:
    control = {"ttl": 5, "block_offset": 3}
    hints, _ = read({}, None, {"agent_hint": {"session_id": "s", "cache_control": control}})
    parsed = HintParser(hints).parse()
    assert (parsed.is_clipped, parsed.ttl_s) == (True, 5.0)


@pytest.mark.parametrize("header", ["", "%%%", "W10", "/" * 50, "A", in_header("x")])
def test_a_header_that_is_no_json_object_names_nothing(header: str) -> None:
    assert read({"x-agent-hint": header}, None, {}) == ({}, True)
    # It is told beside hints that can be used, too.
    assert read({"x-agent-hint": header}, HINTS, {}) == (HINTS, True)
    assert read({"x-agent-hint": in_header({})}, HINTS, {}) == (HINTS, False)


@pytest.mark.parametrize("text", ["{" * MAX_TEXT_CHARS, '{"a":' * 3000, "{" + " " * (1 << 20)])
def test_a_text_of_hostile_json_is_no_object(text: str) -> None:
    assert read({}, text, {}) == ({}, True)


def test_forms_that_are_nested_deeply_are_not_compared() -> None:
    deep: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for _ in range(100_000):
        deep, other = {"a": deep}, {"a": other}
    assert read({}, {"state": deep}, {"agent_hint": {"state": other}}) == ({"state": deep}, True)


@pytest.mark.parametrize("form", range(7))
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
def test_hints_of_any_name_reach_the_engine(
    http: httpx.Client, engine: FakeEngine, path: str, form: int
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body: dict[str, Any] = {
        "chat/completions": {"messages": messages},
        "completions": {"prompt": "hi"},
        "responses": {"input": "hi"},
        "messages": {"messages": messages, "max_tokens": 4},
    }[path]
    headers, fields = forms({"agent_id": "a", "task_id": "w", "step_graph": GRAPH})[form]
    answer = http.post(f"/v1/{path}", json=body | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    (request,) = engine.requests.values()
    assert request.hints is not None
    assert (request.hints.workflow_id, request.hints.agent_id) == ("w", "a")
    assert request.hints.graph is not None
    assert request.hints.graph.names == ("a", "b")
    assert not request.hints.is_clipped


@pytest.mark.parametrize(
    ("headers", "fields", "run"),
    [
        ({"X-Session-ID": "s"}, {}, "s"),
        ({"X-Session-ID": "s", "X-Parent-Session-Id": "p"}, {}, "p"),
        ({"X-Claude-Code-Session-Id": "s"}, {}, "s"),
        ({}, {"metadata": {"session_id": "s"}}, "s"),
        ({}, {"prompt_cache_key": "s"}, None),
        ({}, {"prompt_cache_key": "k", "metadata": {"session_id": "s"}}, "s"),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_the_run_of_hints_that_name_none_is_the_root_session(
    http: httpx.Client,
    engine: FakeEngine,
    path: str,
    headers: dict[str, str],
    fields: dict[str, Any],
    run: str | None,
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages} if path == "chat/completions" else {"prompt": "hi"}
    hints = {"agent_id": "a", "step_graph": GRAPH}
    http.post(f"/v1/{path}", json={**body, **fields, "agent_hints": hints}, headers=headers)
    (request,) = engine.requests.values()
    assert request.hints is not None
    assert (request.hints.workflow_id, request.hints.agent_id) == (run, "a")
    assert request.hints.has_unused == (run is None)


def test_a_priority_that_does_not_count_is_told(http: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "hi", "agent_hints": {"priority": 3}}
    for priority, is_clipped in ((None, False), (3, False), (1, True)):
        engine.requests.clear()
        http.post("/v1/completions", json={**body, "priority": priority})
        (request,) = engine.requests.values()
        assert request.hints is not None
        assert request.hints.is_clipped == is_clipped


def test_a_fixed_prefix_is_told_if_truncation_moves_it(
    http: httpx.Client, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "hello " * 20}]
    for hints, is_clipped in (({}, False), ({"fixed_prefix": {"end": 4}}, True)):
        engine.requests.clear()
        body = {"messages": messages, "truncate_prompt_tokens": 8}
        answer = http.post(
            "/v1/chat/completions", json={**body, "agent_hints": {"agent_id": "a", **hints}}
        )
        assert answer.status_code == 200, answer.text
        (request,) = engine.requests.values()
        assert request.hints is not None
        assert (request.hints.num_fixed, request.hints.is_clipped) == (None, is_clipped)
