from __future__ import annotations

import openai

from kvflow_jax.requests.outputs import FinishReason
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import (
    HELLO,
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
