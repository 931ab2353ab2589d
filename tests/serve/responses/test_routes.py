"""``/v1/responses`` over the production engine, by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.serve_requests import error_of
from tests.support.scripted_runner import MODEL, ScriptedServer, scripted_server


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        yield http


def test_a_text_is_a_completed_response(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Paris.")
    response = client.responses.create(
        model=MODEL,
        input="Capital of France?",
        instructions="Be brief.",
        temperature=0.5,
        metadata={"a": "b"},
        max_output_tokens=64,
        store=True,
    )
    assert server.runner.prompts == [
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert response.id.startswith("resp_")
    assert response.status == "completed"
    assert response.output_text == "Paris."
    (item,) = response.output
    assert item.type == "message"
    assert item.id.startswith("msg_")
    assert item.role == "assistant"
    assert item.status == "completed"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.annotations == []
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert response.usage.output_tokens == len("Paris.") + 1
    assert response.usage.total_tokens == response.usage.input_tokens + len("Paris.") + 1
    assert response.instructions == "Be brief."
    assert response.temperature == 0.5
    assert response.metadata == {"a": "b"}
    assert response.max_output_tokens == 64
    assert response.store is False
    assert response.incomplete_details is None


def test_a_text_streams_as_its_events(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Hélas, 你好!")
    with client.responses.create(model=MODEL, input="hi", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    assert "".join(delta.delta for delta in deltas) == "Hélas, 你好!"
    last = events[-1].response
    assert last.id == events[0].response.id
    assert last.output_text == events[-4].text == "Hélas, 你好!"
    item_ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert item_ids == {last.output[0].id}
    assert events[-2].item == last.output[0]
    assert last.usage.output_tokens > 0


def test_a_stream_of_the_client_ends_with_a_final_response(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("one two")
    with client.responses.stream(model=MODEL, input="hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "one two"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_the_limit_cuts_is_incomplete(
    server: ScriptedServer, client: openai.OpenAI, stream: bool
) -> None:
    server.script("a" * 50)
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=4, stream=stream)
    if stream:
        last = list(answer)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text == "aaaa"
    assert answer.output[0].status == "incomplete"


def test_an_empty_output_is_an_empty_message(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("")
    response = client.responses.create(model=MODEL, input="hi")
    assert response.status == "completed"
    assert response.output[0].content[0].text == ""


def test_a_conversation_of_items_is_one_chat(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("ok")
    client.responses.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "Plan."}]},
            {"type": "message", "role": "user", "content": "hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "hello", "annotations": []}],
            },
            {"role": "user", "content": "more"},
        ],
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        prompt_cache_key="p",
        text={"verbosity": "low"},
        parallel_tool_calls=True,
        store=False,
    )
    assert server.runner.prompts[0] == (
        "<|im_start|>system\nPlan.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_second_turn_reads_the_first_from_the_cache(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a" * 100, "done")
    turn = [{"role": "user", "content": "cache me"}]
    first = client.responses.create(model=MODEL, input=turn)
    turn += [item.model_dump() for item in first.output] + [{"role": "user", "content": "next"}]
    second = client.responses.create(model=MODEL, input=turn)
    assert second.usage.input_tokens_details.cached_tokens >= 96


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_given_if_included(
    server: ScriptedServer, client: openai.OpenAI, stream: bool
) -> None:
    server.script("two")
    answer = client.responses.create(
        model=MODEL,
        input="hi",
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        stream=stream,
    )
    if stream:
        events = list(answer)
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert "".join(entry.token for delta in deltas for entry in delta.logprobs) == "two"
        answer = events[-1].response
    logprobs = answer.output[0].content[0].logprobs
    assert [entry.token for entry in logprobs] == ["t", "w", "o"]
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)


def test_logprobs_are_of_the_text_alone(server: ScriptedServer, http: httpx.Client) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>'
    server.script(*[f"one{call}é2{call}"] * 2)
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    body = {"input": "hi", "tools": tools, "include": ["message.output_text.logprobs"]}
    answer = http.post("/v1/responses", json=body).json()
    *_, data, _ = http.post("/v1/responses", json={**body, "stream": True}).text.split("data: ")
    for response in (answer, json.loads(data)["response"]):
        kinds = [item["type"] for item in response["output"]]
        assert kinds == ["message", "function_call"] * 2
        for item, text in zip(response["output"][::2], ("one", "é2"), strict=True):
            (part,) = item["content"]
            assert part["text"] == text
            tokens = [bytes(entry["bytes"]) for entry in part["logprobs"]]
            assert b"".join(tokens).decode() == text


def test_sampling_fields_of_the_chat_route_apply(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("one, two")
    response = client.responses.create(model=MODEL, input="hi", extra_body={"stop": ","})
    assert response.output_text == "one"


def test_a_step_that_fails_ends_the_response_as_failed(
    server: ScriptedServer, client: openai.OpenAI, http: httpx.Client
) -> None:
    server.script()  # without a script the step fails
    answer = http.post("/v1/responses", json={"input": "hi"})
    assert error_of(answer, 500)["type"] == "server_error"


def test_every_event_is_named(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("x")
    text = http.post("/v1/responses", json={"input": "hi", "stream": True}).text
    *events, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    for event in events:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "a text or a list of items"),
        ({"input": []}, "input", "a text or a list of items"),
        ({"input": 7}, "input", "must be a string or a list"),
        ({"input": ["hi"]}, "input[0]", "an object"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "robot"),
        ({"input": [{"role": "user"}]}, "input[0].content", "a list of parts"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0]", "input_image"),
        ({"input": [{"type": "magic"}]}, "input[0].type", "magic"),
        ({"input": [{"type": "function_call"}]}, "input[0].name", "a string"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].call_id", "a string"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"input": "x", "temperature": -1}, "temperature", "temperature"),
        ({"input": "x", "temperature": "hot"}, "temperature", "number"),
        ({"input": "x", "background": True}, "background", "not supported"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "not supported"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "not supported"),
        ({"input": "x", "text": {"format": "json"}}, "text.format", "an object"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "a string"),
        ({"input": "x", "tools": [{}]}, "tools[0].type", "a string"),
    ],
)
def test_bad_bodies_are_refused_by_field(
    http: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    error = error_of(http.post("/v1/responses", json=body), 400)
    assert error["param"] == param
    assert message in error["message"]


def test_an_earlier_response_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    assert raised.value.code == "previous_response_not_found"


def test_an_overlong_input_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="x" * 9000)
    assert raised.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="hi")


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "%s", "arguments": {"city": "%s"}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_items_beside_the_text(
    server: ScriptedServer, client: openai.OpenAI, stream: bool
) -> None:
    calls = CALL % ("get_weather", "Paris") + "\n" + CALL % ("get_weather", "Oslo")
    server.script("I look." + calls)
    answer = client.responses.create(model=MODEL, input="hi", tools=[WEATHER], stream=stream)
    if stream:
        events = list(answer)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        answer = events[-1].response
        for index, item in enumerate(answer.output[1:], 1):
            of_item = [event for event in events if getattr(event, "output_index", None) == index]
            kinds = [event.type.removeprefix("response.") for event in of_item]
            assert kinds[0] == "output_item.added"
            assert set(kinds[1:-2]) == {"function_call_arguments.delta"}
            assert kinds[-2:] == ["function_call_arguments.done", "output_item.done"]
            assert of_item[0].item.arguments == ""
            assert of_item[0].item.call_id == item.call_id
            assert "".join(event.delta for event in of_item[1:-2]) == item.arguments
            assert of_item[-2].arguments == item.arguments
            assert of_item[-1].item == item
    text, first, second = answer.output
    assert text.content[0].text == "I look."
    assert [item.type for item in (first, second)] == ["function_call"] * 2
    assert [json.loads(item.arguments) for item in (first, second)] == [
        {"city": "Paris"},
        {"city": "Oslo"},
    ]
    assert first.name == "get_weather"
    assert first.id.startswith("fc_")
    assert first.call_id != second.call_id
    assert first.status == answer.status == "completed"
    assert answer.tools[0].name == "get_weather"


def test_a_call_that_the_limit_cuts_is_incomplete(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    text = CALL % ("get_weather", "Paris")
    server.script(text)
    length = text.index("Paris") + 2
    response = client.responses.create(
        model=MODEL, input="hi", tools=[WEATHER], max_output_tokens=length
    )
    assert response.status == "incomplete"
    assert response.output[0].status == "incomplete"
    assert response.output[0].arguments.startswith('{"city": "P')


def test_a_turn_with_calls_and_results_goes_on(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("I look." + CALL % ("get_weather", "Paris"), "Sunny.")
    turn: list[Any] = [{"role": "user", "content": "hi"}]
    first = client.responses.create(model=MODEL, input=turn, tools=[WEATHER])
    turn += [item.model_dump(exclude_none=True) for item in first.output]
    call_id = first.output[1].call_id
    result = [{"type": "input_text", "text": "sun"}]
    turn.append({"type": "function_call_output", "call_id": call_id, "output": result})
    second = client.responses.create(model=MODEL, input=turn, tools=[WEATHER])
    assert second.output_text == "Sunny."
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens
    assert "sun" in server.runner.prompts[1]


def test_tools_of_a_namespace_are_called_back_by_its_name(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    spawn = {"type": "function", "name": "spawn", "parameters": {"type": "object"}}
    tools = [
        {"type": "web_search"},
        {"type": "namespace", "name": "agents", "description": "d", "tools": [spawn]},
        {"type": "custom", "name": "apply_patch"},
    ]
    server.script(CALL % ("agents__spawn", "x"), "done")
    first = client.responses.create(model=MODEL, input="hi", tools=tools)
    (call,) = first.output
    assert (call.namespace, call.name) == ("agents", "spawn")
    assert "apply_patch" not in server.runner.prompts[0]
    turn = [{"role": "user", "content": "hi"}, call.model_dump(exclude_none=True)]
    turn.append({"type": "function_call_output", "call_id": call.call_id, "output": "ok"})
    client.responses.create(model=MODEL, input=turn, tools=tools)
    assert '"name": "agents__spawn", "arguments"' in server.runner.prompts[1]


def test_a_choice_of_a_tool_that_is_unknown_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="other"):
        client.responses.create(
            model=MODEL,
            input="hi",
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "other"},
        )


def test_a_text_format_that_cannot_compile_is_refused(
    server: ScriptedServer, http: httpx.Client
) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}
    body = {
        "input": "hi",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
    }
    error = error_of(http.post("/v1/responses", json=body), 400)
    assert "$ref" in error["message"] or "http://x/y" in error["message"]
