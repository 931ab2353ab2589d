"""Chats over the production engine, with the tokens of a script."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.scripted_runner import MODEL, ScriptedServer, scripted_server

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def test_texts_answer_in_order_and_end(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Hélas, 你好!", "two")
    first = client.chat.completions.create(model=MODEL, messages=HELLO)
    second = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True)
    assert first.choices[0].message.content == "Hélas, 你好!"
    assert first.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "two"
    assert [token.token for token in second.choices[0].logprobs.content] == list("two")
    assert server.runner.prompts[0].endswith(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_texts_by_prompt_answer_the_last_key(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script()
    server.runner.by_prompt |= {"hi": "one", "more": "two"}
    for content, answer in (("hi", "one"), ("hi, more", "two"), ("more, hi", "one")):
        messages = [{"role": "user", "content": content}]
        chat = client.chat.completions.create(model=MODEL, messages=messages)
        assert chat.choices[0].message.content == answer


def test_a_second_turn_reads_the_first_from_the_cache(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a" * 100, "done")
    first = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=64)
    assert first.choices[0].finish_reason == "length"
    history = [*HELLO, {"role": "assistant", "content": "a" * 64}, *HELLO]
    second = client.chat.completions.create(model=MODEL, messages=history)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.choices[0].message.content == "done"
