from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.service import Service
from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import CHAT, HELLO, error_of


def test_a_dead_engine_fails_the_open_requests(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.chat.completions.create, model="tiny", messages=HELLO)
        engine.wait_for_requests(1)
        engine.is_alive = False
        with pytest.raises(openai.InternalServerError, match="engine has stopped"):
            answer.result()


def test_a_stalled_engine_is_healthy_but_not_ready(http: httpx.Client, engine: FakeEngine) -> None:
    engine.stalled_by = "process 1 on there has not answered for 7 s"
    error = error_of(http.get("/ready"), 503)
    assert error["code"] == "stalled"
    assert "process 1 on there has not answered for 7 s" in error["message"]
    assert http.get("/health").status_code == 200  # a restart would lose the queued requests
    assert http.post(CHAT, json={"messages": HELLO}).status_code == 200
    engine.stalled_by = ""
    assert http.get("/ready").status_code == 200


def test_a_dead_engine_is_unhealthy(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    engine.is_alive = False
    assert error_of(http.get("/health"), 503)["code"] == "engine_dead"
    assert error_of(http.get("/ready"), 503)["code"] == "engine_dead"
    assert error_of(http.post(CHAT, json={"messages": HELLO}), 503)["code"] == "engine_dead"


def test_a_text_longer_than_the_context_is_rejected_without_tokenization(
    http: httpx.Client, live: LiveServer
) -> None:
    live.tokenizer.encoded.clear()
    text = "x" * (live.engine.max_model_len * live.tokenizer.max_token_bytes + 1)
    user = {"role": "user", "content": "x"}
    for path, body in (
        ("/v1/completions", {"prompt": ["a", text]}),
        (CHAT, {"messages": [{**user, "content": text}]}),
        # No text is too long by itself, wherever it is.
        (CHAT, {"messages": [{**user, "content": text[:100]}] * 30}),
        (CHAT, {"messages": [{**user, "own": [{"a": text[:-99]}]}, {**user, "content": "x" * 99}]}),
        (CHAT, {"messages": [user], "chat_template_kwargs": {"a": text}}),
        (CHAT, {"messages": [{**user, "own": [0] * len(text)}]}),
    ):
        assert error_of(http.post(path, json=body), 400)["code"] == "context_length_exceeded"
    assert not live.tokenizer.encoded


def test_more_completions_than_the_queue_can_hold_are_rejected(
    http: httpx.Client, engine: FakeEngine
) -> None:
    answer = http.post("/v1/completions", json={"prompt": ["a"] * (engine.max_pending + 1)})
    assert "split it" in error_of(answer, 400)["message"]
    for path, body in (("/v1/completions", {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        answer = http.post(path, json={**body, "n": engine.max_pending + 1})
        assert error_of(answer, 400)["param"] == "n"
    assert not engine.requests


def test_an_unknown_model_is_a_404(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "gpt-9", "messages": HELLO})
    error = error_of(answer, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'tiny'" in error["message"]
    assert error_of(http.get("/v1/models/some/model"), 404)["code"] == "model_not_found"


def test_a_model_without_a_tokenizer_accepts_token_ids_only() -> None:
    live = LiveServer(lambda engine: (engine, None, "shape", {}))
    try:
        live.wait_loaded()
        with httpx.Client(base_url=live.url) as http:
            assert http.post("/v1/completions", json={"prompt": [97]}).status_code == 200
            for path, body in (
                ("completions", {"prompt": "a"}),
                ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ):
                answer = http.post(f"/v1/{path}", json=body)
                assert answer.status_code == 400
                assert "token ids" in answer.json()["error"]["message"]
    finally:
        live.request_stop()
        live.join()
        live.engine.close()


def test_a_signal_while_loading_leaves_the_server_draining() -> None:
    service, engine = Service(ServerConfig()), FakeEngine()

    async def scenario() -> None:
        assert await service.drain(0)
        service.start(engine, None, "tiny", {})

    try:
        asyncio.run(scenario())
        assert not service.is_ready
        with pytest.raises(ApiError, match="shutting down"):
            service.check_ready()
    finally:
        service.close()
