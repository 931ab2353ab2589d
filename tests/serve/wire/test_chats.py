"""Requests 9 to 29: the chat route."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import openai

from tests.serve.serve_requests import CHAT, error_of
from tests.serve.wire.wire_requests import (
    CITY,
    TOOLS,
    USER,
    call,
    call_deltas,
    chat,
    chunks,
    finish_of,
    ok,
    text_of,
)
from tests.support.scripted_runner import MODEL, ScriptedServer


def test_09_tools_and_an_answer_in_text(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("Sunny.", "Sunny.")
    choice = chat(http, tools=TOOLS, tool_choice="auto")
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "Sunny."
    assert "tool_calls" not in choice["message"]
    streamed = chunks(http, tools=TOOLS)
    assert (text_of(streamed), finish_of(streamed)) == ("Sunny.", "stop")
    assert not any("tool_calls" in one["choices"][0]["delta"] for one in streamed)


def test_10_a_call(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris"), f"I look.{call('Paris')}")
    for content in (None, "I look."):
        choice = chat(http, tools=TOOLS)
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == content
        (made,) = choice["message"]["tool_calls"]
        function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        assert made == {"id": made["id"], "type": "function", "function": function}


def test_11_a_streamed_call(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris"))
    streamed = chunks(http, tools=TOOLS)
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    first, *rest = call_deltas(streamed)
    opening = {"name": "get_weather", "arguments": ""}
    assert first == {"index": 0, "id": first["id"], "type": "function", "function": opening}
    assert rest
    assert all(set(one) == {"index", "function"} for one in rest)
    assert all(set(one["function"]) == {"arguments"} for one in rest)
    assert "".join(one["function"]["arguments"] for one in rest) == '{"city": "Paris"}'
    assert finish_of(streamed) == "tool_calls"


def test_12_two_calls(server: ScriptedServer, client: openai.OpenAI) -> None:
    both = call("Paris") + call("Oslo", "get_time")
    server.script(both, both)
    for is_parallel, num_calls in ((None, 2), (False, 1)):
        given = {} if is_parallel is None else {"parallel_tool_calls": is_parallel}
        with client.chat.completions.stream(
            model=MODEL, messages=USER, tools=TOOLS, **given
        ) as events:
            indices = {
                delta.index
                for event in events
                if event.type == "chunk"
                for choice in event.chunk.choices
                for delta in choice.delta.tool_calls or ()
            }
            calls = events.get_final_completion().choices[0].message.tool_calls
        assert indices == set(range(num_calls))
        assert len({made.id for made in calls}) == len(calls) == num_calls
        assert [made.function.name for made in calls] == ["get_weather", "get_time"][:num_calls]


def test_13_a_call_must_be_made(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris"), call("Paris"), call("Paris").replace('"Paris"', "1"))
    choice = chat(http, tools=TOOLS, tool_choice="required")
    assert choice["finish_reason"] == "tool_calls"
    assert len(choice["message"]["tool_calls"]) == 1
    streamed = chunks(http, tools=TOOLS, tool_choice="required")
    assert finish_of(streamed) == "tool_calls"
    # A model could not have said what its schema does not allow; a script that does fails.
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required"}
    assert "grammar" in error_of(http.post(CHAT, json=body), 500)["message"]


def test_14_a_named_function(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris", "get_time"))
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = chat(http, tools=TOOLS, tool_choice=named)
    (made,) = choice["message"]["tool_calls"]
    assert made["function"] == {"name": "get_time", "arguments": '{"city": "Paris"}'}
    named["function"] = {"name": "get_news"}
    body = {"messages": USER, "tools": TOOLS, "tool_choice": named}
    error = error_of(http.post(CHAT, json=body), 400)
    assert error["param"] == "tool_choice"
    assert "get_news" in error["message"]


def test_15_no_calls_by_choice(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("a", call("Paris"))
    chat(http, tools=TOOLS)
    choice = chat(http, tools=TOOLS, tool_choice="none")
    assert choice["message"]["content"] == call("Paris")
    assert "tool_calls" not in choice["message"]
    first, second = server.runner.prompts
    assert first == second


def history(arguments: str, result: Any) -> list[dict[str, Any]]:
    made = {"name": "get_weather", "arguments": arguments}
    calls = [{"id": "call_1", "type": "function", "function": made}]
    return [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


def test_16_calls_and_results_of_the_history(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("a", "a")
    for result in ("sunny", [{"type": "text", "text": "sunny"}]):
        chat(http, history('{"city": "Paris"}', result))
    for prompt in server.runner.prompts:
        assert f"assistant\n{call('Paris')}" in prompt
        assert "<tool_response>\nsunny\n</tool_response>" in prompt


def test_17_arguments_that_are_no_json(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("a")
    chat(http, history("not {json", "?"))
    assert '"arguments": not {json' in server.runner.prompts[0]


def test_18_a_call_that_max_tokens_cuts(server: ScriptedServer, http: httpx.Client) -> None:
    begin = call("Paris").partition("ris")[0]
    num_tokens = len(server.tokenizer.encode(begin, add_special_tokens=False))
    server.script(call("Paris"), call("Paris"))
    choice = chat(http, tools=TOOLS, max_tokens=num_tokens)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Pa'
    streamed = chunks(http, tools=TOOLS, max_tokens=num_tokens)
    assert finish_of(streamed) == "length"
    pieces = [one["function"]["arguments"] for one in call_deltas(streamed)]
    assert "".join(pieces) == '{"city": "Pa'


def test_19_a_json_object(server: ScriptedServer, http: httpx.Client) -> None:
    server.script('{"city": "Paris"}')
    choice = chat(http, response_format={"type": "json_object"})
    assert json.loads(choice["message"]["content"]) == {"city": "Paris"}


def test_20_a_json_schema(server: ScriptedServer, http: httpx.Client) -> None:
    server.script('{"city": "Paris"}')
    wrapped = {"name": "city", "schema": CITY, "strict": True}
    choice = chat(http, response_format={"type": "json_schema", "json_schema": wrapped})
    jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
    wrapped["schema"] = {"type": "array", "uniqueItems": True}
    asked = {"type": "json_schema", "json_schema": wrapped}
    error = error_of(http.post(CHAT, json={"messages": USER, "response_format": asked}), 400)
    assert error["param"] == "response_format"
    assert "uniqueItems" in error["message"]


def test_21_tools_and_a_json_schema(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris"), '{"city": "Paris"}', "It is sunny.")
    wrapped = {"name": "city", "schema": CITY, "strict": True}
    fields = {"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": wrapped}}
    assert chat(http, **fields)["finish_reason"] == "tool_calls"
    choice = chat(http, **fields)
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
    body = {"messages": USER, **fields}
    assert "grammar" in error_of(http.post(CHAT, json=body), 500)["message"]


def test_22_usage_in_streams(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Hello.", "Hello.")
    asked = {"model": MODEL, "messages": USER, "stream": True}
    *others, last = client.chat.completions.create(**asked, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == len("Hello.") + 1
    assert last.usage.prompt_tokens_details.cached_tokens is not None
    assert all(one.usage is None for one in others)
    plain = list(client.chat.completions.create(**asked))
    assert all(one.choices and one.usage is None for one in plain)


def test_23_fields_of_other_services(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("a")
    client.chat.completions.create(
        model=MODEL,
        messages=USER,
        reasoning_effort="low",
        verbosity="low",
        store=True,
        metadata={"a": "b"},
        prompt_cache_key="session-1",
        service_tier="auto",
        safety_identifier="user-1",
        prediction={"type": "content", "content": "x"},
    )


def test_26_parts_of_a_content(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("a")
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]
    chat(http, [{"role": "user", "content": parts}])
    assert "<|im_start|>user\none\ntwo<|im_end|>" in server.runner.prompts[0]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    body = {"messages": [{"role": "user", "content": [*parts, image]}]}
    error = error_of(http.post(CHAT, json=body), 400)
    assert error["param"] == "messages[0].content[2]"
    assert "image_url" in error["message"]


def test_27_a_prompt_over_the_context(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "a" * 9000}]
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": messages},
        "/v1/completions": {"prompt": "a" * 9000},
        "/v1/responses": {"input": "a" * 9000},
    }
    for path, body in bodies.items():
        error = error_of(http.post(path, json={"model": MODEL, **body}), 400)
        assert error["code"] == "context_length_exceeded"
        # By these words LiteLLM knows it.
        assert "This model's maximum context length is 8192 tokens" in error["message"]
        assert re.search("requested (at least )?[0-9]{4} tokens", error["message"])


def test_28_sampling_fields_with_tools(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(call("Paris"), call("Paris"), "One. Two.")
    body = {"messages": USER, "tools": TOOLS, "n": 2, "seed": 7, "logprobs": True}
    body |= {"top_logprobs": 2, "stop": ["<tool", "Paris"]}
    for choice in ok(http.post(CHAT, json=body))["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
        tokens = [one["token"] for one in choice["logprobs"]["content"]]
        assert "".join(tokens) == call("Paris")
    choice = chat(http, tools=TOOLS, stop=".")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("One", "stop")


def test_29_a_prefill(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(" is sunny.", "A")
    messages = [*USER, {"role": "assistant", "content": "Paris"}]
    choice = chat(http, messages, continue_final_message=True, add_generation_prompt=False)
    assert choice["message"]["content"] == " is sunny."
    chat(http, messages, add_generation_prompt=True)
    continued, answered = server.runner.prompts
    assert continued.endswith("<|im_start|>assistant\nParis")
    assert answered.endswith("Paris<|im_end|>\n<|im_start|>assistant\n")
