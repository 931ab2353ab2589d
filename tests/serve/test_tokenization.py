from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.serve_fakes import LiveServer
from tests.serve.serve_requests import HELLO, SYSTEM_AND_USER, error_of
from tests.support.scripted_runner import scripted_server


def test_a_text_becomes_its_token_ids(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": "tiny", "prompt": "hi"}).json()
    assert answer == {"count": 2, "max_model_len": 512, "tokens": [104, 105], "token_strs": None}


def test_messages_become_the_prompt_of_a_chat(http: httpx.Client, live: LiveServer) -> None:
    body = {"messages": SYSTEM_AND_USER, "chat_template_kwargs": {"a": 1}}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert tokens == live.engine.last.prompt_ids


def test_production_tokens_are_written_and_read_back() -> None:
    with scripted_server() as server, httpx.Client(base_url=server.url, timeout=20) as http:
        text = "Hélas, <|im_end|> 你好"
        body = {"prompt": text, "return_token_strs": True, "add_special_tokens": False}
        answer = http.post("/tokenize", json=body).json()
        assert answer["tokens"] == server.tokenizer.encode(text, add_special_tokens=False)
        assert answer["token_strs"][0] == "H"
        assert "<|im_end|>" in answer["token_strs"]
        back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
        assert back == {"prompt": text}
        chat = http.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
        without = http.post(
            "/tokenize", json={"messages": HELLO, "add_generation_prompt": False}
        ).json()["tokens"]
        assert chat[: len(without)] == without
        assert server.tokenizer.decode(chat[len(without) :], skip_special_tokens=False) == (
            "<|im_start|>assistant\n"
        )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"prompt": "x" * 5000}, "prompt"),
        ("/tokenize", {"messages": "hi"}, "messages"),
        ("/tokenize", {"messages": HELLO, "tools": 7}, "tools"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 513}, "tokens"),
    ],
)
def test_bad_bodies_are_refused_by_field(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    assert error_of(http.post(path, json=body), 400)["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_another_model_is_not_found(http: httpx.Client, path: str) -> None:
    body = {"model": "other", "prompt": "hi", "tokens": [1]}
    assert error_of(http.post(path, json=body), 404)["code"] == "model_not_found"
