from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.sampling_params import SamplingParams
from tests.serve.serve_fakes import FakeEngine

HELLO = [{"role": "user", "content": "hi"}]


def test_an_answer_in_one_piece(client: openai.OpenAI, engine: FakeEngine) -> None:
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


def test_cached_tokens_are_zero_rather_than_null(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": HELLO}).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_a_stream_has_role_then_text_then_reason(client: openai.OpenAI, engine: FakeEngine) -> None:
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


def test_usage_comes_last_when_asked_for(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 2
    assert last.usage.prompt_tokens_details.cached_tokens == 0


def test_the_wire_ends_with_done_and_survives_odd_line_ends(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply = ["a\u2028b\x85c\n", "é"]
    answer = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert '"usage"' not in answer.text


def test_an_error_before_the_first_token_keeps_its_status(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            client.chat.completions.create, model="tiny", messages=HELLO, stream=True
        )
        (request,) = engine.wait_for_requests(1)
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.InternalServerError, match="block 7 is lost"):
            answer.result()


def test_an_error_in_mid_stream_is_an_event(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as stream:
        (request,) = engine.wait_for_requests(1)
        assert next(stream).choices[0].delta.role == "assistant"
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.APIError, match="block 7 is lost"):
            list(stream)


def test_a_failure_of_the_engine_without_streaming(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.chat.completions.create, model="tiny", messages=HELLO)
        (request,) = engine.wait_for_requests(1)
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.InternalServerError, match="block 7 is lost"):
            answer.result()


def test_a_dead_engine_frees_its_clients(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.chat.completions.create, model="tiny", messages=HELLO)
        engine.wait_for_requests(1)
        engine.is_alive = False
        with pytest.raises(openai.InternalServerError, match="engine has stopped"):
            answer.result()


def test_concurrent_requests_get_their_own_answers(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = lambda request: list(request.prompt.removeprefix("<user>"))

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            answer = client.chat.completions.create(model="tiny", messages=messages)
            return answer.choices[0].message.content
        with client.chat.completions.create(model="tiny", messages=messages, stream=True) as stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    assert answers == [f"number {number}" for number in range(40)]


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


def test_parameters_reach_the_engine(http: httpx.Client, engine: FakeEngine) -> None:
    http.post(
        "/v1/chat/completions",
        json={
            "messages": HELLO,
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 11,
            "stop_token_ids": [4],
            "ignore_eos": True,
            "priority": 2,
            "cache_salt": "mine",
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.3,
            "logit_bias": {"5": 1},
            "stop": "END",
            "include_stop_str_in_output": True,
            "min_tokens": 2,
            "skip_special_tokens": False,
            "logprobs": True,
            "top_logprobs": 3,
            "prompt_logprobs": 1,
            "user": "me",
        },
    ).raise_for_status()
    assert engine.last.params == SamplingParams(
        max_tokens=7,
        temperature=0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        logit_bias={5: 1.0},
        seed=11,
        stop=("END",),
        include_stop=True,
        stop_token_ids=(4,),
        min_tokens=2,
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=3,
        prompt_logprobs=1,
    )
    assert (engine.last.priority, engine.last.salt) == (2, "mine")
    assert engine.last.fairness_key == "127.0.0.1:me"


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_to_each_prompt(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.reply = lambda request: [f"{request.prompt}{request.params.seed}"]
    asked = {"model": "tiny", "prompt": ["a", "bb"], "n": 3, "seed": 7}
    if stream:
        chunks = list(
            client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
        texts = dict.fromkeys(range(6), "")
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        usage = chunks[-1].usage
    else:
        answer = client.completions.create(**asked)
        texts = {choice.index: choice.text for choice in answer.choices}
        usage = answer.usage
    assert texts == {0: "a7", 1: "a8", 2: "a9", 3: "bb7", 4: "bb8", 5: "bb9"}
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 6)


def test_null_is_absent_and_unknown_fields_pass(http: httpx.Client, engine: FakeEngine) -> None:
    absent = ["model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k"]
    absent += ["seed", "stop", "n", "tools", "response_format", "logprobs", "logit_bias"]
    harmless = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
        "tool_choice": "none",
        "user": "me",
        "metadata": {"a": "b"},
        "agent_hints": {"workflow_id": "w"},
        "unheard_of": [1, {"deep": None}],
        "stop": [],
        "response_format": {"type": "text"},
    }
    body = {"messages": HELLO, **dict.fromkeys(absent), **harmless}
    http.post("/v1/chat/completions", json=body).raise_for_status()
    assert engine.last.params == SamplingParams()


@pytest.mark.parametrize("name", ["tiny", "tiny-dir"])
def test_the_model_goes_by_two_names(client: openai.OpenAI, live: object, name: str) -> None:
    assert client.chat.completions.create(model=name, messages=HELLO).model == "tiny"
    assert client.models.retrieve(name).id == "tiny"


def test_the_model_list(client: openai.OpenAI, engine: FakeEngine) -> None:
    (card,) = client.models.list().data
    assert card.id == "tiny"
    assert card.model_extra["max_model_len"] == engine.max_model_len
