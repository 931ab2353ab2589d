"""One bad input per error; every one in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.serve_fakes import FakeEngine, LiveServer

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": "\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b"[" * 30_000,
        b'{"a":' * 30_000,
        b"[]",
        b'"text"',
        b"null",
        b'{"messages": [], "seed": ' + b"9" * 10_000 + b"}",
    ],
)
def test_bodies_that_are_no_json_object(
    http: httpx.Client, engine: FakeEngine, body: bytes
) -> None:
    error = error_of(http.post(CHAT, content=body), 400)
    assert error["type"] == "invalid_request_error"
    assert not engine.requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": "f"}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"priority": "high"}, "priority"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"cache_salt": 3}, "cache_salt"),
        ({"cache_salt": "s" * 1025}, "cache_salt"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": "0.5"}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(10_000)}}, "logit_bias"),
        ({"stop": ["s"] * 100}, "stop"),
        ({"stop": "s" * 257}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"user": 3}, "user"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    ],
)
def test_bad_fields_are_named(
    http: httpx.Client, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    error = error_of(http.post(CHAT, json={"messages": HELLO, **change}), 400)
    assert error["param"] == param
    assert not engine.requests


def test_a_number_beyond_floats_is_refused(http: httpx.Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}'
    assert error_of(http.post(CHAT, content=body), 400)["param"] == "temperature"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("chat_template", "{{ 1 }}"),
    ],
)
def test_what_is_not_supported_yet_says_so(
    http: httpx.Client, engine: FakeEngine, field: str, value: Any
) -> None:
    error = error_of(http.post(CHAT, json={"messages": HELLO, field: value}), 400)
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"
    assert field in error["message"]
    assert not engine.requests


@pytest.mark.parametrize("field", ["best_of", "suffix"])
def test_completions_not_supported_yet(http: httpx.Client, field: str) -> None:
    value = {"best_of": 2, "suffix": "x"}[field]
    answer = http.post("/v1/completions", json={"prompt": "a", field: value})
    assert error_of(answer, 400)["param"] == field


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 129}, "n"),
    ],
)
def test_bad_fields_of_completions(
    http: httpx.Client, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", **change})
    assert error_of(answer, 400)["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    "prompt", [None, 3, [], [1, "a"], [[1], "a"], [True], [[1.5]], {"a": 1}, "", [[]], [2**40]]
)
def test_bad_prompts(http: httpx.Client, prompt: Any) -> None:
    assert error_of(http.post("/v1/completions", json={"prompt": prompt}), 400)["param"] == "prompt"


def test_a_missing_prompt(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/completions", json={}), 400)["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context(http: httpx.Client, engine: FakeEngine, stream: bool) -> None:
    prompt = "x" * engine.max_model_len
    answer = http.post("/v1/completions", json={"prompt": prompt, "stream": stream})
    assert error_of(answer, 400)["code"] == "context_length_exceeded"


def test_a_text_that_cannot_fit_is_not_even_tokenized(http: httpx.Client, live: LiveServer) -> None:
    live.tokenizer.encoded.clear()
    text = "x" * (live.engine.max_model_len * live.tokenizer.max_token_bytes + 1)
    for path, body in (
        ("/v1/completions", {"prompt": ["a", text]}),
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
    ):
        assert error_of(http.post(path, json=body), 400)["code"] == "context_length_exceeded"
    assert not live.tokenizer.encoded


def test_more_prompts_than_can_ever_wait(http: httpx.Client, engine: FakeEngine) -> None:
    answer = http.post("/v1/completions", json={"prompt": ["a"] * (engine.max_pending + 1)})
    assert "split it" in error_of(answer, 400)["message"]
    for path, body in (("/v1/completions", {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        answer = http.post(path, json={**body, "n": engine.max_pending + 1})
        assert error_of(answer, 400)["param"] == "n"
    assert not engine.requests


def test_an_unknown_model(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "gpt-9", "messages": HELLO})
    error = error_of(answer, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'tiny'" in error["message"]
    assert error_of(http.get("/v1/models/some/model"), 404)["code"] == "model_not_found"


def test_an_unknown_route_and_a_wrong_method(http: httpx.Client) -> None:
    assert "/v2/chat" in error_of(http.post("/v2/chat"), 404)["message"]
    answer = http.get(CHAT)
    assert "POST" in error_of(answer, 405)["message"]
    assert answer.headers["allow"] == "POST"


def test_bodies_that_are_too_large(http: httpx.Client, live: LiveServer) -> None:
    large = b"x" * (live.config.max_body_bytes + 1)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, chunks()):
        error = error_of(http.post(CHAT, content=content), 413)
        assert error["code"] == "body_too_large"
        assert "0.25 MiB" in error["message"]
    # The connection is still good, and a body at the bound passes.
    body = {"messages": HELLO, "pad": "x" * (live.config.max_body_bytes - 100)}
    assert http.post(CHAT, json=body).status_code == 200


def test_a_bug_shows_no_traceback(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "explode"}]})
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_full_cache_flush(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.post("/flush_cache").json() == {"flushed": True}
    engine.can_flush = False
    assert http.post("/flush_cache").json() == {"flushed": True}  # nothing to drop
    engine.stats = type(engine.stats)(num_running=2, num_waiting=1, num_blocks_cached=9)
    error = error_of(http.post("/flush_cache"), 409)
    assert "2 running, 1 waiting" in error["message"]


def test_an_engine_that_waits_for_a_process_is_not_ready(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.stalled_by = "process 1 on there has not answered for 7 s"
    error = error_of(http.get("/ready"), 503)
    assert error["code"] == "stalled"
    assert "process 1 on there has not answered for 7 s" in error["message"]
    assert http.get("/health").status_code == 200  # to start it again would lose what waits
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
