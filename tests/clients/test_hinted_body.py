"""Bodies with hints in them."""

from __future__ import annotations

import json

import pytest

from kvflow_jax.clients.hinted_body import read_body, route_of, with_hints


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "/chat/completions"),
        ("/openai/deployments/m/chat/completions/", "/chat/completions"),
        ("/v1/completions", "/completions"),
        ("/v1/responses", "/responses"),
        ("/v1/messages", "/messages"),
        ("/v1/messages/count_tokens", None),
        ("/v1/responses/resp_1", None),
        ("/v1/embeddings", None),
        ("/", None),
    ],
)
def test_routes_that_take_hints(path: str, route: str | None) -> None:
    assert route_of(path) == route


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"text",
        b'{"a":',
        b'"{"',
        b"\xff{}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        b'{"agent_hints": {"agent_id": "own"}, "a": 1}',
        b'{"agent_hints": null}',
        b"{" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_bodies_that_get_no_hints(content: bytes) -> None:
    assert read_body(content) is None


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b" \n{ }\n",
        b'{"model":"m","messages":[{"content":"say \\"agent_hints\\": {}"}]}',
        b'{"a": 1.0, "a": 1e400, "b": "\\u00e9\xc3\xa9"}',
    ],
)
@pytest.mark.parametrize("graph", [None, '{"nodes":["a"]}'])
@pytest.mark.parametrize("hints", [{}, {"agent_id": 'p"\u2028\ud800', "priority": 1}])
def test_hints_are_added_and_the_rest_stays(
    content: bytes, graph: str | None, hints: dict[str, object]
) -> None:
    assert read_body(content) is not None
    hinted = with_hints(content, hints, graph)
    body = json.loads(hinted)
    expected = hints if graph is None else {**hints, "step_graph": json.loads(graph)}
    assert body.pop("agent_hints") == expected
    assert body == json.loads(content)
    assert hinted.endswith(content.lstrip()[1:])
