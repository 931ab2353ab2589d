"""Fields of vLLM that say how a prompt is made, and how tokens and usage come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.serve_requests import CHAT, HELLO, error_of
from tests.support.scripted_runner import ScriptedServer, scripted_server

COMPLETIONS = "/v1/completions"
TEXT = "Aé 你."  # some of its tokens are no whole characters
PREFILL = [*HELLO, {"role": "assistant", "content": "Once upon"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server(max_model_len=128) as server:
        yield server


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    server.script(*[TEXT] * 4)
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def post(http: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"prompt": "hi"} if path == COMPLETIONS else {"messages": HELLO}
    answer = http.post(path, json={**prompt, "max_tokens": 50, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks_of(http: httpx.Client, path: str, **fields: Any) -> list[dict[str, Any]]:
    prompt = {"prompt": "hi"} if path == COMPLETIONS else {"messages": HELLO}
    body = {**prompt, "max_tokens": 50, "stream": True, **fields}
    lines = http.post(path, json=body).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def output_ids(server: ScriptedServer) -> list[int]:
    eos = server.tokenizer.eos_token_ids[0]
    return [*server.tokenizer.encode(TEXT, add_special_tokens=False), eos]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_token_ids_of_prompt_and_output_are_returned(
    server: ScriptedServer, http: httpx.Client, path: str
) -> None:
    answer = post(http, path, return_token_ids=True)
    (choice,) = answer["choices"]
    prompt_ids = (choice if path == COMPLETIONS else answer)["prompt_token_ids"]
    assert (
        server.tokenizer.decode(prompt_ids, skip_special_tokens=False) == server.runner.prompts[0]
    )
    assert choice["token_ids"] == output_ids(server)

    first, *rest = chunks_of(http, path, return_token_ids=True)
    owner = first["choices"][0] if path == COMPLETIONS else first
    assert owner["prompt_token_ids"] == prompt_ids
    choices = [chunk["choices"][0] for chunk in (first, *rest)]
    assert [i for one in choices for i in one.get("token_ids") or []] == output_ids(server)
    for chunk in rest:
        assert chunk.get("prompt_token_ids") is None
        assert chunk["choices"][0].get("prompt_token_ids") is None
    plain = post(http, path)
    assert plain["choices"][0].get("token_ids") is None
    assert plain["choices"][0].get("prompt_token_ids") is None


def test_tokens_of_logprobs_are_written_as_ids(server: ScriptedServer, http: httpx.Client) -> None:
    expected = [f"token_id:{i}" for i in output_ids(server)[:-1]]
    chat = post(http, CHAT, logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)
    content = chat["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == expected
    assert bytes(b for entry in content for b in entry["bytes"]).decode() == TEXT
    text = post(http, COMPLETIONS, logprobs=1, return_tokens_as_token_ids=True)
    assert text["choices"][0]["logprobs"]["tokens"] == expected


def test_every_chunk_has_the_usage_so_far(server: ScriptedServer, http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = chunks_of(http, CHAT, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == len(output_ids(server))
    for chunk in chunks:
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == last["usage"]["prompt_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # Without include_usage it has no effect, as in vLLM.
    chunks = chunks_of(http, CHAT, stream_options={"continuous_usage_stats": True})
    assert not any("usage" in chunk for chunk in chunks)


def test_a_server_may_end_every_stream_with_its_usage() -> None:
    with (
        scripted_server(force_include_usage=True) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        server.script(TEXT)
        *chunks, last = chunks_of(http, CHAT)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == len(output_ids(server))
        assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncate_prompt_tokens": 4}, "6789"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, "0123"),
        ({"truncate_prompt_tokens": 128}, "0123456789"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 120}, "23456789"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 128}, "9"),
    ],
)
def test_a_prompt_is_truncated(
    server: ScriptedServer, http: httpx.Client, fields: dict[str, Any], expected: str
) -> None:
    answer = post(http, COMPLETIONS, prompt="0123456789", echo=True, **fields)
    assert server.runner.prompts == [expected]
    assert answer["usage"]["prompt_tokens"] == len(expected)
    assert answer["choices"][0]["text"].startswith(expected)
    tokens = http.post("/tokenize", json={"prompt": "0123456789", **fields}).json()["tokens"]
    assert server.tokenizer.decode(tokens) == expected


def test_a_chat_longer_than_the_context_is_truncated(
    server: ScriptedServer, http: httpx.Client
) -> None:
    messages = [{"role": "user", "content": "x" * 1000}]
    assert error_of(http.post(CHAT, json={"messages": messages}), 400)
    post(http, CHAT, messages=messages, truncate_prompt_tokens=-1)
    (prompt,) = server.runner.prompts
    assert prompt.endswith("xx<|im_end|>\n<|im_start|>assistant\n")
    body = {"messages": messages, "truncate_prompt_tokens": 30}
    assert http.post("/tokenize", json=body).json()["count"] == 30


def test_the_last_message_is_continued(server: ScriptedServer, http: httpx.Client) -> None:
    answer = post(http, CHAT, messages=PREFILL, continue_final_message=True)
    assert server.runner.prompts[0].endswith("<|im_start|>assistant\nOnce upon")
    assert answer["choices"][0]["message"]["content"] == TEXT
    body = {"messages": PREFILL, "continue_final_message": True}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    prompt = server.tokenizer.decode(tokens, skip_special_tokens=False)
    assert prompt == server.runner.prompts[0]


def test_the_message_that_is_continued_is_echoed(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"messages": PREFILL, "continue_final_message": True, "echo": True}
    answer = post(http, CHAT, **fields)
    assert answer["choices"][0]["message"]["content"] == f"Once upon{TEXT}"
    chunks = chunks_of(http, CHAT, **fields)
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(texts) == f"Once upon{TEXT}"


def test_a_prompt_may_end_without_the_generation_prompt(
    server: ScriptedServer, http: httpx.Client
) -> None:
    post(http, CHAT, add_generation_prompt=False)
    assert server.runner.prompts[0].endswith("hi<|im_end|>\n")


def test_the_last_message_of_the_assistant_is_a_prefill_of_messages(
    server: ScriptedServer, http: httpx.Client
) -> None:
    body = {"messages": PREFILL, "max_tokens": 50}
    answer = http.post("/v1/messages", json=body).json()
    assert answer["content"] == [{"type": "text", "text": TEXT}]
    assert server.runner.prompts[0].endswith("<|im_start|>assistant\nOnce upon")
    counted = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    usage = answer["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_fields_of_other_servers_may_have_the_value_that_changes_nothing(
    http: httpx.Client,
) -> None:
    neutral = {"repeat_penalty": 1.0, "mirostat": 0, "n_predict": -1, "stop_regex": None}
    assert post(http, CHAT, **neutral)["choices"][0]["finish_reason"] == "stop"
    error = error_of(http.post(CHAT, json={"messages": HELLO, "n_predict": 9}), 400)
    assert error["message"] == "n_predict is not supported; use max_tokens"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_fields_of_openai_that_change_nothing_are_accepted(http: httpx.Client, path: str) -> None:
    ignored = {
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "verbosity": "low",
        "prediction": None,
    }
    assert post(http, path, **ignored)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (CHAT, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (COMPLETIONS, {"truncate_prompt_tokens": 129}, "truncate_prompt_tokens"),
        ("/tokenize", {"prompt": "a", "truncate_prompt_tokens": 129}, "truncate_prompt_tokens"),
        (COMPLETIONS, {"truncation_side": "middle"}, "truncation_side"),
        (COMPLETIONS, {"return_token_ids": 1}, "return_token_ids"),
        (COMPLETIONS, {"allowed_token_ids": [1 << 20]}, "allowed_token_ids"),
        (COMPLETIONS, {"allowed_token_ids": [1], "guided_regex": "a"}, "allowed_token_ids"),
        (COMPLETIONS, {"bad_words": ["x"]}, "bad_words"),
        (CHAT, {"max_new_tokens": 5}, "max_new_tokens"),
        (COMPLETIONS, {"repeat_penalty": 1.1}, "repeat_penalty"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"chat_template": "{{ messages }}"}, "chat_template"),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": True}, None),
        (
            CHAT,
            {"continue_final_message": True, "messages": [*HELLO, PREFILL[-1] | {"content": " "}]},
            "messages",
        ),
        (CHAT, {"chat_template_kwargs": {"add_special_tokens": True}}, "chat_template_kwargs"),
    ],
)
def test_bad_values_are_refused_by_field(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str | None
) -> None:
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "hi"}
    error = error_of(http.post(path, json={**prompt, **fields}), 400)
    assert error["param"] == (param or "continue_final_message")
