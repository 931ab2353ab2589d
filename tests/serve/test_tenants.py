"""Tenants over HTTP: what one of them can take of, or learn about, another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kvflow_jax.reuse.predictor import Transition
from tests.serve.serve_fakes import LiveServer, live_server
from tests.serve.serve_requests import HELLO

KEYS = """
[classes.small]
max_n = 2
max_pending = 3
max_graphs = 1
max_priority = -1

[classes.metered]
tokens_per_minute = 6

[[keys]]
name = "red"
key = "r"

[[keys]]
name = "blue"
key = "b"

[[keys]]
name = "small"
key = "s"
class = "small"

[[keys]]
name = "metered"
key = "m"
class = "metered"

[[keys]]
name = "ops"
key = "root"
class = "admin"
"""
CHAT = {"messages": HELLO}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(KEYS)
    with live_server(api_key_file=Path(path)) as live:
        yield live


@pytest.fixture(autouse=True)
def fresh(live: LiveServer) -> None:
    live.engine.settle()
    live.engine.reset()


def ask(live: LiveServer, key: str, method: str, path: str, **rest: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, live.url + path, headers=headers, timeout=20, **rest)  # type: ignore[arg-type]


def chat(live: LiveServer, key: str, **fields: object) -> httpx.Response:
    return ask(live, key, "POST", "/v1/chat/completions", json={**CHAT, **fields})


def test_a_request_has_the_tenant_and_the_room_of_its_key(live: LiveServer) -> None:
    assert chat(live, "r", user="me", priority=7).status_code == 200
    red = live.engine.last.spec
    assert chat(live, "b").status_code == 200
    blue = live.engine.last.spec
    assert (red.tenant, red.cache_tenant, red.user) == ("red", "red", "me")
    assert (blue.tenant, blue.user) == ("blue", "")
    assert red.salt != blue.salt


def test_a_priority_counts_up_to_that_of_the_class_between_tenants(live: LiveServer) -> None:
    ranks = []
    for key, priority in (("r", 7), ("r", -7), ("s", 7), ("s", -7)):
        assert chat(live, key, priority=priority).status_code == 200
        spec = live.engine.last.spec
        assert spec.priority == priority
        ranks.append(spec.rank)
    assert ranks == [0, -7, -1, -7]


def test_completions_are_bounded_by_the_class(live: LiveServer) -> None:
    assert chat(live, "s", n=2).status_code == 200
    answer = chat(live, "s", n=3)
    assert answer.status_code == 400
    assert "at most 2 completions" in answer.json()["error"]["message"]
    body = {"prompt": ["a"] * 4}
    answer = ask(live, "s", "POST", "/v1/completions", json=body)
    assert "at most 3 completions" in answer.json()["error"]["message"]
    assert ask(live, "r", "POST", "/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {**CHAT, "max_tokens": 8}),
    ],
)
def test_a_full_queue_refuses_its_tenant_before_texts_are_tokenized(
    live: LiveServer, path: str, body: dict[str, object]
) -> None:
    for _ in range(live.engine.max_pending):
        live.engine.backlog.add("red", 4.0)
    num_encoded = len(live.tokenizer.encoded)
    answer = ask(live, "r", "POST", path, json=body)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "6"  # none has ended since, for 6 s
    assert len(live.tokenizer.encoded) == num_encoded
    assert ask(live, "b", "POST", path, json=body).status_code == 200


def test_a_quota_of_tokens_is_one_keys_own(live: LiveServer) -> None:
    assert chat(live, "m").status_code == 200  # its prompt has more than 6 tokens
    answer = chat(live, "m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["Retry-After"]) > 1
    assert chat(live, "r").status_code == 200


def test_graphs_are_bounded_by_the_class_and_seen_by_admins(live: LiveServer) -> None:
    graph = {"nodes": ["a"]}
    assert ask(live, "s", "PUT", "/v1/workflows/one", json=graph).status_code == 200
    assert ask(live, "s", "PUT", "/v1/workflows/one", json=graph).status_code == 200
    answer = ask(live, "s", "PUT", "/v1/workflows/two", json=graph)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "graph_quota_exceeded")
    assert ask(live, "r", "PUT", "/v1/workflows/two", json=graph).status_code == 200

    assert ask(live, "r", "GET", "/v1/workflows/one").status_code == 404
    for method, path in (
        ("GET", "/v1/workflows?tenant=small"),
        ("GET", "/v1/workflows/one?tenant=small"),
        ("DELETE", "/v1/workflows/one?tenant=small"),
    ):
        answer = ask(live, "r", method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_required")
        assert ask(live, "root", method, path).status_code == 200
    assert ask(live, "s", "GET", "/v1/workflows").json()["data"] == []


def test_a_learned_order_is_its_tenants_own_and_seen_by_admins(live: LiveServer) -> None:
    live.engine.transitions["small"] = [Transition(("a",), "b", 1.0, 2.0, None)]
    assert ask(live, "r", "GET", "/v1/learned_order").json()["data"] == []
    assert ask(live, "r", "DELETE", "/v1/learned_order").json()["deleted"] is False
    for method in ("GET", "DELETE"):
        answer = ask(live, "r", method, "/v1/learned_order?tenant=small")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_required")
        assert ask(live, "nobody", method, "/v1/learned_order").status_code == 401
    assert len(ask(live, "s", "GET", "/v1/learned_order").json()["data"]) == 1
    path = "/v1/learned_order?tenant=small"
    assert len(ask(live, "root", "GET", path).json()["data"]) == 1
    assert ask(live, "root", "DELETE", path).json()["deleted"] is True
    assert live.engine.transitions == {}


def test_what_concerns_all_tenants_is_for_admins(live: LiveServer) -> None:
    for method, path in (("POST", "/flush_cache"), ("GET", "/metrics")):
        assert ask(live, "r", method, path).status_code == 403
        assert ask(live, "root", method, path).status_code == 200
    assert ask(live, "r", "GET", "/server_info").json()["settings"] is None
    settings = ask(live, "root", "GET", "/server_info").json()["settings"]
    assert "api_key" not in settings
    assert settings["max_waiting"] == 1024


def test_the_load_is_a_tenants_own(live: LiveServer) -> None:
    live.engine.reply = None
    live.engine.first_texts = ["Hel"]
    headers = {"Authorization": "Bearer r"}
    url = f"{live.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        loads = {
            key: ask(live, key, "GET", "/load").json()["server_load"] for key in ("r", "b", "root")
        }
        live.engine.finish(live.engine.last)
    assert loads == {"r": 1, "b": 0, "root": 1}
