from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.errors import QueueFullError
from tests.serve.serve_fakes import FakeEngine, LiveServer


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_all_forms_of_prompt(
    client: openai.OpenAI, engine: FakeEngine, prompt: Any, seen: list[str]
) -> None:
    engine.reply = lambda request: [request.prompt.upper()]
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert [request.prompt for request in engine.requests.values()] == seen
    assert [choice.index for choice in answer.choices] == list(range(len(seen)))
    assert [choice.text for choice in answer.choices] == [text.upper() for text in seen]
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage.prompt_tokens == len("".join(seen))
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert engine.last.params.max_tokens == 16  # OpenAI's default


def test_streams_of_several_prompts_interleave(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda request: ["2"] if request.prompt == "b" else None
    with client.completions.create(
        model="tiny",
        prompt=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        first, _ = engine.wait_for_requests(2)
        while (chunk := next(stream)).choices[0].finish_reason is None:
            assert (chunk.choices[0].index, chunk.choices[0].text) == (1, "2")
        engine.emit(first, "1")
        assert next(stream).choices[0].text == "1"
        engine.finish(first)
        last, usage = list(stream)
    assert (last.choices[0].index, last.choices[0].finish_reason) == (0, "stop")
    assert usage.choices == []
    assert usage.usage.total_tokens == 4


def test_a_refused_prompt_takes_the_others_back(http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply = None
    too_long = "x" * engine.max_model_len
    answer = http.post("/v1/completions", json={"prompt": ["a", too_long]})
    assert answer.status_code == 400
    assert engine.aborted == [engine.last.request_id]


def test_a_full_queue_says_when_to_come_back(http: httpx.Client, engine: FakeEngine) -> None:
    engine.submit_error = QueueFullError("8 requests wait, --max-waiting is 8", retry_after_s=3)
    answer = http.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_model_without_a_tokenizer_takes_token_ids() -> None:
    live = LiveServer(lambda engine: (engine, None, "shape"))
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
