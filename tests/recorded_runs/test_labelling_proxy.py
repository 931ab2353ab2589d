from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.recorded_runs.labelling_proxy import labelling_proxy
from tests.support.scripted_runner import MODEL, scripted_server


def ask(url: str, run: str, agent: str, text: str, model: str = MODEL) -> ChatCompletion:
    base_url = f"{url}/{run}/{agent}/v1"
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        messages = [{"role": "user", "content": text}]
        return client.chat.completions.create(model=model, messages=messages)


def test_calls_are_kept_with_their_labels_and_tokens():
    with scripted_server() as server, labelling_proxy(server.url) as proxy:
        server.script("two steps", "some code")
        answers = [
            ask(proxy.url, "run-0", "planner", "Plan."),
            ask(proxy.url, "run-1", "coder", "Code."),
        ]
        calls = proxy.calls
        encode = server.tokenizer.encode
        tokens = [encode(call.answer, add_special_tokens=False) for call in calls]
        prompts = [server.tokenizer.decode(call.prompt_ids) for call in calls]
    assert [(call.run, call.agent) for call in calls] == [("run-0", "planner"), ("run-1", "coder")]
    assert [call.answer for call in calls] == ["two steps", "some code"]
    # A client that did not ask for tokens gets none.
    assert answers[0].choices[0].message.content == "two steps"
    assert "token_ids" not in answers[0].choices[0].model_extra
    assert [call.answer_ids[: len(ids)] for call, ids in zip(calls, tokens, strict=True)] == tokens
    assert "Plan." in prompts[0]
    assert calls[0].begin_s < calls[0].end_s <= calls[1].begin_s


def test_errors_reach_the_client_and_are_not_kept():
    with scripted_server() as server, labelling_proxy(server.url) as proxy:
        with pytest.raises(openai.NotFoundError):
            ask(proxy.url, "run-0", "planner", "Plan.", model="other")
        assert proxy.calls == []
