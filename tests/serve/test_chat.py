from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.requests.outputs import FinishReason
from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import (
    HELLO,
    PLANNER,
    SYSTEM_AND_USER,
    SYSTEM_PROMPT,
    chat_with_hints,
)


def test_a_chat_completion_without_streaming(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.num_cached = 3
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == len("<user>hi")
    assert answer.usage.completion_tokens == 2
    assert answer.usage.total_tokens == len("<user>hi") + 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_opens_with_the_role_and_ends_with_the_finish_reason(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as stream:
        (request,) = engine.wait_for_requests(1)
        role, first = next(stream), next(stream)
        engine.finish(request, FinishReason.LENGTH, text="b")
        rest = list(stream)
    assert role.choices[0].delta.role == "assistant"
    assert role.choices[0].finish_reason is None
    assert first.choices[0].delta.content == "a"
    assert rest[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == "b"
    assert all(chunk.usage is None for chunk in rest)
    assert len({chunk.id for chunk in [role, first, *rest]}) == 1
    assert role.object == "chat.completion.chunk"


def test_roles_and_parts_reach_the_template(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"x": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    prompt = engine.last.prompt
    assert prompt.startswith("<system>be kind<user>a\nb<assistant><tool>2")
    assert "'arguments': {'x': 1}" in prompt
    assert "[enable_thinking=False]" in prompt


@pytest.mark.parametrize(
    ("fixed_prefix", "num_fixed"),
    [
        (None, len(SYSTEM_PROMPT)),
        ({"unit": "message", "end": 1}, len(SYSTEM_PROMPT)),
        ({"unit": "message", "end": 2}, len(SYSTEM_PROMPT + "<user>hi")),
        ({"unit": "message", "end": 99}, len(SYSTEM_PROMPT + "<user>hi")),
        ({"unit": "message", "end": 0}, 0),
        ({"unit": "token", "end": 5}, 5),
        ({"unit": None, "end": 5}, 5),
        ({"unit": "token", "end": 999}, len(SYSTEM_PROMPT + "<user>hi")),
    ],
)
def test_the_fixed_prefix_ends_at_the_given_message_or_token(
    http: httpx.Client, engine: FakeEngine, fixed_prefix: Any, num_fixed: int
) -> None:
    hints = {**PLANNER, "fixed_prefix": fixed_prefix}
    chat_with_hints(http, hints)
    assert engine.last.hints.num_fixed == num_fixed


def test_the_fixed_prefix_is_unknown_if_no_system_message_can_be_rendered_alone(
    http: httpx.Client, live: LiveServer
) -> None:
    chat_with_hints(http, PLANNER, messages=SYSTEM_AND_USER[1:])
    assert live.engine.last.hints.num_fixed is None
    live.tokenizer.rejects_system_only = True
    try:
        assert chat_with_hints(http, PLANNER)["kvflow"]["hint_status"] == "applied"
    finally:
        live.tokenizer.rejects_system_only = False
    assert live.engine.last.hints.num_fixed is None
    before = live.tokenizer.num_rendered
    # Without an agent there is no fixed prefix to compute.
    chat_with_hints(http, {"workflow_id": "w"})
    assert live.tokenizer.num_rendered == before + 1
