from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax import __version__
from kvflow_jax.workflow.hints import Hints, Reuse
from tests.serve.serve_fakes import FakeEngine, LiveServer, live_server
from tests.serve.serve_requests import PLANNER, SYSTEM_AND_USER, chat_with_hints, error_of


def test_flushing_a_cache_in_use_is_a_409(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.post("/flush_cache").json() == {"flushed": True}
    engine.can_flush = False
    assert http.post("/flush_cache").json() == {"flushed": True}  # nothing to drop
    engine.stats = type(engine.stats)(num_running=2, num_waiting=1, num_blocks_cached=9)
    error = error_of(http.post("/flush_cache"), 409)
    assert "2 running, 1 waiting" in error["message"]


def test_every_hint_reaches_the_engine(http: httpx.Client, engine: FakeEngine) -> None:
    names = {"workflow_id": "run 7", "agent_id": "planner", "session_id": "s"}
    hints = {
        **names,
        "parent_session_id": "s0",
        "session_generation": 2,
        "graph_id": "review",
        "step_graph": {"edges": [{"source": "planner", "target": "coder"}]},
        "steps_to_execution": {"coder": 1, "tester": 2},
        "next_agents": [{"agent_id": "coder", "probability": 0.5}, "tester"],
        "reuse_hint": "keep",
        "cache_ttl_ms": 1500,
        "fixed_prefix": {"unit": "token", "end": 4},
        "prefetch": False,
        "priority": 3,
    }
    assert chat_with_hints(http, hints)["kvflow"]["hint_status"] == "applied"
    seen = engine.last.hints
    assert seen.graph.names == ("planner", "coder")
    assert seen == Hints(
        **names,
        parent_session_id="s0",
        session_generation=2,
        graph_id="review",
        graph=seen.graph,
        steps_to_execution={"coder": 1.0, "tester": 2.0},
        next_agents={"coder": 0.5, "tester": 1.0},
        reuse=Reuse.KEEP,
        ttl_s=1.5,
        num_fixed=4,
        prefetch=False,
        priority=3,
    )
    assert engine.last.spec.priority == 3
    beside = {**hints, "unheard_of": [{}]}
    assert chat_with_hints(http, beside)["kvflow"]["hint_status"] == "clipped"
    final = {"session_id": "s", "session_final": True}
    assert chat_with_hints(http, final)["kvflow"]["hint_status"] == "applied"
    assert engine.last.hints == Hints(session_id="s", session_final=True)
    chat_with_hints(http, hints, priority=-1)
    assert engine.last.spec.priority == -1
    assert engine.last.hints.graph is seen.graph  # one object for all requests of a run


@pytest.mark.parametrize("absent", [{}, {"agent_hints": None}])
def test_a_request_without_hints_reaches_the_engine_without_hints(
    http: httpx.Client, live: LiveServer, absent: dict[str, Any]
) -> None:
    live.engine.num_cached, live.engine.num_cached_host = 8, 3
    before = live.tokenizer.num_rendered
    answer = http.post("/v1/chat/completions", json={"messages": SYSTEM_AND_USER, **absent}).json()
    assert answer["kvflow"] == {
        "cached_tokens_details": {"device": 5, "host": 3},
        "hint_status": None,
    }
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    assert live.engine.last.hints is None
    assert live.tokenizer.num_rendered == before + 1


@pytest.mark.parametrize(
    ("hints", "status"),
    [
        ("planner", "ignored"),
        (7, "ignored"),
        ([PLANNER], "ignored"),
        (False, "ignored"),
        ({}, "ignored"),
        ({"agent_id": ""}, "ignored"),
        ({"agent_id": "x" * 257}, "ignored"),
        ({"workflow_id": {"deep": [None]}}, "ignored"),
        ({**PLANNER, "session_id": 5}, "clipped"),
        ({**PLANNER, "session_final": "yes"}, "clipped"),
        ({**PLANNER, "graph_id": ["g"]}, "clipped"),
        ({**PLANNER, "step_graph": {"edges": [{"source": "a"}]}}, "clipped"),
        ({**PLANNER, "step_graph": "a->b"}, "clipped"),
        ({**PLANNER, "steps_to_execution": {"coder": "soon"}}, "clipped"),
        ({**PLANNER, "steps_to_execution": [1]}, "clipped"),
        ({**PLANNER, "steps_to_execution": 10**300}, "clipped"),
        ({**PLANNER, "next_agents": [{"agent_id": "coder", "probability": 2}]}, "clipped"),
        ({**PLANNER, "next_agents": {"coder": 1}}, "clipped"),
        ({**PLANNER, "reuse_hint": "forever"}, "clipped"),
        ({**PLANNER, "reuse_hint": 1}, "clipped"),
        ({**PLANNER, "cache_ttl_ms": -1}, "clipped"),
        ({**PLANNER, "cache_ttl_ms": 10**400}, "clipped"),
        ({**PLANNER, "priority": "high"}, "clipped"),
        ({**PLANNER, "priority": 10**10}, "clipped"),
        ({**PLANNER, "fixed_prefix": 5}, "clipped"),
        ({**PLANNER, "fixed_prefix": {"unit": "page", "end": 1}}, "clipped"),
        ({**PLANNER, "fixed_prefix": {"unit": ["token"], "end": 1}}, "clipped"),
        ({**PLANNER, "fixed_prefix": {"end": -1}}, "clipped"),
        ({**PLANNER, "fixed_prefix": {"end": 10**400}}, "clipped"),
    ],
)
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_invalid_hints_never_fail_a_request(
    http: httpx.Client, engine: FakeEngine, route: str, hints: Any, status: str
) -> None:
    prompt = {"messages": SYSTEM_AND_USER} if route.startswith("chat") else {"prompt": "hi"}
    answer = http.post(f"/v1/{route}", json={**prompt, "agent_hints": hints})
    assert answer.status_code == 200
    assert answer.json()["kvflow"]["hint_status"] == status


def test_agents_belong_to_the_tenant_whatever_the_user() -> None:
    with live_server(api_keys=("one", "two")) as live:
        seen = {}
        for key in ("one", "two"):
            with httpx.Client(
                base_url=live.url, headers={"Authorization": f"Bearer {key}"}
            ) as http:
                for user in ("a", "b"):
                    chat_with_hints(http, PLANNER, user=user)
                    seen[key, user] = live.engine.last.spec.tenant
        assert seen["one", "a"] == seen["one", "b"] != ""
        assert seen["two", "a"] == seen["two", "b"] != seen["one", "a"]


def test_the_version_is_that_of_the_package(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": __version__}
