"""Hints under other names: where they are found, and which of them count."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from kvflow_jax.serve.hint_aliases import MAX_TEXT_CHARS, hint_data
from tests.serve.serve_fakes import FakeEngine

HINTS = {"agent_id": "a", "workflow_id": "w"}


def in_header(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, {"agent_hint": HINTS}),
        ({}, {"vllm_xargs": {"agentic_context": HINTS}}),
        ({}, {"vllm_xargs": {"agentic_context": json.dumps(HINTS)}}),
        ({}, {"nvext": {"agent_hints": HINTS}}),
        ({"x-kvflow-hint": in_header(HINTS)}, {}),
        ({"x-agent-hint": in_header(HINTS)}, {}),
    ],
)
def test_hints_are_found_under_each_name(headers: dict[str, str], fields: dict[str, Any]) -> None:
    assert hint_data(headers, None, fields) == HINTS
    assert hint_data({}, HINTS, {}) == HINTS
    assert hint_data({}, None, {"vllm_xargs": 5, "nvext": {}}) is None


def test_the_first_name_counts_for_each_field() -> None:
    fields = {
        "agent_hint": {"agent_id": "b", "session_id": None, "priority": 1},
        "nvext": {"agent_hints": {"priority": 2, "session_id": "s"}},
    }
    expected = {"agent_id": "a", "priority": 1, "session_id": "s"}
    assert hint_data({}, {"agent_id": "a"}, fields) == expected


@pytest.mark.parametrize("name", ["task_id", "root_program_id", "program_id", "prefix_id"])
def test_a_run_has_other_names(name: str) -> None:
    assert hint_data({}, {name: "w"}, {})["workflow_id"] == "w"
    assert hint_data({}, {name: "w", "workflow_id": "v"}, {})["workflow_id"] == "v"


@pytest.mark.parametrize("header", ["", "%%%", "e30", "W10", "/" * 50, "A", in_header("x")])
def test_a_header_that_is_no_json_object_names_nothing(header: str) -> None:
    assert not isinstance(hint_data({"x-agent-hint": header}, None, {}), dict) or header == "e30"


@pytest.mark.parametrize("text", ["{" * MAX_TEXT_CHARS, '{"a":' * 3000, "{" + " " * (1 << 20)])
def test_a_text_of_hostile_json_is_no_object(text: str) -> None:
    assert hint_data({}, text, {}) == text


def test_hints_of_any_name_reach_the_engine(http: httpx.Client, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for path, prompt in (("chat/completions", {"messages": messages}), ("completions", {})):
        engine.requests.clear()
        body = {"prompt": "hi", **prompt, "nvext": {"agent_hints": {"task_id": "w"}}}
        answer = http.post(
            f"/v1/{path}", json=body, headers={"X-Agent-Hint": in_header({"agent_id": "a"})}
        )
        assert answer.status_code == 200, answer.text
        (request,) = engine.requests.values()
        assert request.hints is not None
        assert (request.hints.workflow_id, request.hints.agent_id) == ("w", "a")
