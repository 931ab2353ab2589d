"""``/v1/workflows``: registration of step graphs, and progress reports of runs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax.serve.graph_registry import GraphRegistry
from tests.serve.serve_fakes import FakeEngine, LiveServer, live_server

REVIEW = {
    "name": "review",
    "nodes": ["planner", {"id": "again", "agent": "planner"}],
    "edges": [
        {"source": "planner", "target": "coder"},
        {"source": "coder", "target": "again", "probability": 0.5},
    ],
    "joins": [{"target": "again", "mode": "any"}],
}


def test_a_graph_is_put_shown_replaced_and_deleted(http: httpx.Client, engine: FakeEngine) -> None:
    url = "/v1/workflows/team/review"  # a name may contain a slash
    answer = http.put(url, json=REVIEW)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "graph_id": "team/review",
            "nodes": 3,
            "edges": 2,
            "warnings": ['"coder" is not among nodes, and was added to them'],
        },
    )
    listed = http.get("/v1/workflows").json()
    assert listed == {"object": "list", "data": [{"graph_id": "team/review"}]}
    graph = engine.graphs["", "team/review"]
    assert graph.agents == ("planner", "planner", "coder")
    shown = http.get(url)
    assert shown.headers["content-type"] == "application/json"
    assert shown.json() == {
        "name": "review",
        "nodes": [
            {"id": "planner", "agent": "planner"},
            {"id": "again", "agent": "planner"},
            {"id": "coder", "agent": "coder"},
        ],
        "edges": [
            {"source": "planner", "target": "coder", "conditional": False},
            {"source": "coder", "target": "again", "conditional": True, "probability": 0.5},
        ],
        "joins": [{"target": "again", "mode": "any", "sources": ["coder"]}],
    }
    http.put(url, json=shown.json()).raise_for_status()
    assert http.get(url).json() == shown.json()
    http.put(url, json={"nodes": ["alone"]}).raise_for_status()
    assert engine.graphs["", "team/review"].names == ("alone",)
    assert http.delete(url).json() == {"graph_id": "team/review", "deleted": True}
    assert engine.graphs == {}
    for answer in (http.get(url), http.delete(url)):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "graph_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ("a->b", None),
        ({}, "nodes"),
        ({"nodes": "planner"}, "nodes"),
        ({"nodes": [{"id": 5}]}, "nodes[0].id"),
        ({"edges": [{"source": "a"}]}, "edges[0].target"),
        ({"edges": [{"source": "a", "target": "b", "probability": 2}]}, "edges[0].probability"),
        ({"joins": [{"target": "a", "mode": "most"}]}, "joins[0].mode"),
        ({"entries": [""]}, "entries[0]"),
        ({"nodes": [f"n{i}" for i in range(4097)]}, "nodes"),
    ],
)
def test_an_invalid_graph_is_rejected(
    http: httpx.Client, engine: FakeEngine, body: Any, param: str | None
) -> None:
    answer = http.put("/v1/workflows/review", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert engine.graphs == {}


def test_an_invalid_graph_id_or_body_is_rejected(http: httpx.Client, engine: FakeEngine) -> None:
    for name in ("x" * 257, "a/advance"):
        answer = http.put(f"/v1/workflows/{name}", json=REVIEW)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "graph_id")
    answer = http.put("/v1/workflows/a", content="{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    answer = http.put("/v1/workflows/a", content=b" " * (1 << 20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    wrong = http.post("/v1/workflows/a", json=REVIEW)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET, PUT")


def test_a_run_advances_and_ends(http: httpx.Client, engine: FakeEngine) -> None:
    url = "/v1/workflows/run 7/advance"
    assert http.post(url, json={}).status_code == 404
    engine.runs["", "run 7"] = {"planner", "coder"}
    body = {"completed": ["planner", "stranger"], "running": ["coder"], "unheard_of": 1}
    assert http.post(url, json=body).json() == {"unknown_agents": ["stranger"]}
    assert engine.advanced == [("", "run 7", ["planner", "stranger"], ["coder"])]
    ended = http.post(url, json={"completed": None, "finished": True})
    assert ended.json() == {"unknown_agents": []}
    answer = http.post(url, json={"finished": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "run_not_found")
    engine.runs["", "run 7"] = {"planner"}
    http.post(url, json={"finished": True, "keep_sessions": True}).raise_for_status()
    assert engine.kept_sessions == [False, True]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"completed": "planner"}, "completed"),
        ({"completed": ["a", 5]}, "completed[1]"),
        ({"running": [""]}, "running[0]"),
        ({"running": ["x" * 257]}, "running[0]"),
        ({"running": ["a"] * 4097}, "running"),
        ({"finished": "yes"}, "finished"),
        ({"keep_sessions": 1}, "keep_sessions"),
    ],
)
def test_an_invalid_progress_report_is_rejected(
    http: httpx.Client, engine: FakeEngine, body: dict[str, Any], param: str
) -> None:
    engine.runs["", "w"] = set()
    answer = http.post("/v1/workflows/w/advance", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.advanced == []


def test_each_tenant_has_its_own_graphs_and_runs() -> None:
    with live_server(api_keys=("one", "two")) as live, httpx.Client(base_url=live.url) as http:
        for method, path in (
            ("PUT", "g"),
            ("GET", "g"),
            ("DELETE", "g"),
            ("POST", "g/advance"),
        ):
            assert http.request(method, f"/v1/workflows/{path}", json={}).status_code == 401
        first, second = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        http.put("/v1/workflows/g", json=REVIEW, headers=first).raise_for_status()
        assert http.get("/v1/workflows/g", headers=second).status_code == 404
        assert http.delete("/v1/workflows/g", headers=second).status_code == 404
        assert http.get("/v1/workflows/g", headers=first).status_code == 200
        ((tenant, _),) = live.engine.graphs
        live.engine.runs[tenant, "w"] = set()
        assert http.post("/v1/workflows/w/advance", json={}, headers=second).status_code == 404
        assert http.post("/v1/workflows/w/advance", json={}, headers=first).status_code == 200


def test_a_graph_evicted_from_the_registry_is_evicted_from_the_engine(
    http: httpx.Client, live: LiveServer
) -> None:
    service = live.server.service
    before, service.graph_registry = service.graph_registry, GraphRegistry(max_bytes=1)
    try:
        for name in "abac":
            http.put(f"/v1/workflows/{name}", json=REVIEW).raise_for_status()
        assert {graph_id for _, graph_id in live.engine.graphs} == {"c"}
        assert http.get("/v1/workflows/b").status_code == 404
    finally:
        service.graph_registry = before
