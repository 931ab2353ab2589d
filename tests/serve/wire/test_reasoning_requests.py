"""Requests 23 to 25 to a model that thinks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.wire.wire_requests import USER, chat, chunks, text_of
from tests.support.scripted_runner import MODEL, ScriptedServer, scripted_server

# As Qwen 3's: it writes the reasoning of the history, and can turn it off.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
ANSWER = "<think>\nRain or sun?\n</think>\n\nSunny."


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server(TEMPLATE) as server:
        yield server


def test_23_no_effort(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(ANSWER, "Sunny.")
    chat(http)
    assert chat(http, reasoning_effort="none")["message"]["content"] == "Sunny."
    thinks, does_not = server.runner.prompts
    assert thinks.endswith("<|im_start|>assistant\n")
    assert does_not.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_24_a_model_that_thinks(
    server: ScriptedServer, http: httpx.Client, client: openai.OpenAI
) -> None:
    server.script(ANSWER, ANSWER)
    completion = client.chat.completions.create(model=MODEL, messages=USER)
    message = completion.choices[0].message
    assert message.content == "Sunny."
    assert message.reasoning == message.reasoning_content == "Rain or sun?"
    assert completion.usage.completion_tokens_details.reasoning_tokens > 0
    streamed = chunks(http)
    assert text_of(streamed) == "Sunny."
    deltas = [one["choices"][0]["delta"] for one in streamed]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == "Rain or sun?"


def test_25_reasoning_of_the_history(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("a", "a")
    for name in ("reasoning", "reasoning_content"):
        answer = {"role": "assistant", "content": "Sunny.", name: "Rain or sun?"}
        chat(http, [*USER, answer, *USER])
    for prompt in server.runner.prompts:
        assert f"<|im_start|>assistant\n{ANSWER}<|im_end|>" in prompt
