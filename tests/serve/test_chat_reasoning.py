"""Reasoning on every route of chats: scripted outputs through the production engine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import anthropic
import httpx
import openai
import pytest

from kvflow_jax.reasoning.syntax import DEEPSEEK_R1, QWEN3
from kvflow_jax.serve.chat_reasoning import ModelReasoning
from tests.serve.responses.open_responses import check_response
from tests.serve.serve_requests import CHAT, error_of
from tests.support.scripted_runner import (
    CHATML_TOKENS,
    MODEL,
    ScriptedServer,
    scripted_server,
    scripted_tokenizer,
)
from tests.tools.parsing import tool

# As Qwen 3's: it writes earlier reasoning, and an empty block where thinking is turned off.
QWEN3_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if reasoning_effort %}({{ reasoning_effort }}){% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# As QwQ's: it opens the reasoning itself. Its tags are special tokens.
OPEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)
USER = [{"role": "user", "content": "Capital of France?"}]
THOUGHT = "<think>\nFrance... <tool_call> is no call.\n</think>\n\n"
REASONING = "France... <tool_call> is no call."
CALL = '<tool_call>\n{"name": "ask", "arguments": {"text": "why?"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """A server of a model whose output may begin with its reasoning."""
    with scripted_server(QWEN3_TEMPLATE) as server:
        yield server


@pytest.fixture(scope="module")
def opened() -> Iterator[ScriptedServer]:
    """A server of a model whose prompt opens the reasoning."""
    with scripted_server(OPEN_TEMPLATE, (*CHATML_TOKENS, "<think>", "</think>")) as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def claude(server: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, messages: Any = USER, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def num_tokens(server: ScriptedServer, text: str) -> int:
    return len(server.tokenizer.encode(text, add_special_tokens=False))


def test_reasoning_is_beside_the_answer_under_both_names(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.", "Paris.")
    answer = chat(client)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Paris.", "stop")
    assert choice.message.reasoning == choice.message.reasoning_content == REASONING
    num_reasoning = num_tokens(server, THOUGHT.rstrip())
    assert answer.usage.completion_tokens_details.reasoning_tokens == num_reasoning
    assert answer.usage.completion_tokens == num_tokens(server, f"{THOUGHT}Paris.") + 1
    plain = chat(client)
    assert plain.choices[0].message.content == "Paris."
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0
    assert "reasoning" not in plain.choices[0].message.model_extra


def test_reasoning_is_streamed_before_the_answer(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.")
    *chunks, usage = chat(client, stream=True, stream_options={"include_usage": True})
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Paris."
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == REASONING
    kinds = [key for key, _ in groupby("reasoning" in delta for delta in deltas[1:])]
    assert kinds == [True, False]
    assert usage.usage.completion_tokens_details.reasoning_tokens > 0


def test_an_answer_that_is_continued_is_no_reasoning(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(" <think>", "see.</think>Paris.")
    more = {"continue_final_message": True, "add_generation_prompt": False}
    for begun, reasoning, content in (("The", None, " <think>"), ("<think>I ", "see.", "Paris.")):
        messages = [*USER, {"role": "assistant", "content": begun}]
        message = chat(client, messages, extra_body=more).choices[0].message
        assert (message.model_extra.get("reasoning"), message.content) == (reasoning, content)


def test_only_the_answer_has_calls(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script(f"<think>{CALL}</think>I ask.{CALL}", f"<think>{CALL}</think>Paris.")
    tools: Any = [tool("ask", text={"type": "string"})]
    (choice,) = chat(client, tools=tools).choices
    assert (choice.message.reasoning, choice.message.content) == (CALL, "I ask.")
    assert len(choice.message.tool_calls) == 1
    (choice,) = chat(client, tools=tools).choices
    assert (choice.message.content, choice.finish_reason) == ("Paris.", "stop")


def test_reasoning_that_max_tokens_cuts_leaves_no_answer(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.")
    answer = chat(client, max_tokens=12)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (None, "length")
    assert REASONING.startswith(choice.message.reasoning)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 12


def test_stop_strings_count_in_the_answer_only(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris, France.", "<think>a\nb</think>\n\nParis\nLyon")
    (choice,) = chat(client, stop=["France", "think"]).choices
    assert choice.message.reasoning == REASONING
    assert (choice.message.content, choice.finish_reason) == ("Paris, ", "stop")
    (choice,) = chat(client, stop="\n").choices
    assert (choice.message.reasoning, choice.message.content) == ("a\nb", "Paris")


def test_include_reasoning_false_leaves_it_out(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.", f"{THOUGHT}Paris.")
    hidden = {"include_reasoning": False}
    answer = chat(client, extra_body=hidden)
    message = answer.choices[0].message
    assert message.content == "Paris."
    assert not {"reasoning", "reasoning_content"} & message.model_extra.keys()
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    chunks = list(chat(client, extra_body=hidden, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Paris."
    assert all("reasoning" not in chunk.choices[0].delta.model_extra for chunk in chunks)


def test_the_history_has_its_reasoning_where_the_template_reads_it(
    server: ScriptedServer, opened: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.", "a", "b")
    opened.script("</think>c")
    message = chat(client).choices[0].message.model_dump(exclude_none=True)
    messages = [*USER, message, {"role": "user", "content": "And of Spain?"}]
    answer = chat(client, messages)
    # The next turn reads the whole of this one from the cache.
    assert server.runner.prompts[1].startswith(f"{server.runner.prompts[0]}{THOUGHT}Paris.")
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached > num_tokens(server, f"{server.runner.prompts[0]}{THOUGHT}") - 16
    del message["reasoning_content"]
    chat(client, messages)
    assert server.runner.prompts[2] == server.runner.prompts[1]
    with opened.client() as client:
        chat(client, messages)
    assert "France..." not in opened.runner.prompts[0]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_in_the_history_must_be_text(server: ScriptedServer, name: str) -> None:
    message = {"role": "assistant", "content": "a", name: ["b"]}
    error = error_of(httpx.post(f"{server.url}{CHAT}", json={"messages": [message, *USER]}), 400)
    assert error["param"] == f"messages[0].{name}"


def test_a_prompt_that_opens_the_reasoning(opened: ScriptedServer) -> None:
    opened.script("I know.\n</think>\n\nParis.</think>", "Lost in thought")
    with opened.client() as client:
        answer, lost = chat(client), chat(client)
    message = answer.choices[0].message
    assert (message.reasoning, message.content) == ("I know.", "Paris.")
    num_reasoning = num_tokens(opened, "I know.\n</think>")
    assert answer.usage.completion_tokens_details.reasoning_tokens == num_reasoning
    message = lost.choices[0].message
    assert (message.reasoning, message.content) == ("Lost in thought", None)


def test_a_grammar_holds_from_the_end_of_the_reasoning_on(
    server: ScriptedServer, opened: ScriptedServer, client: openai.OpenAI
) -> None:
    """An output that its grammar does not allow would fail."""
    tools: Any = [tool("ask", text={"type": "string"})]
    forced = {"tools": tools, "tool_choice": "required"}
    integer = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    server.script(f"{THOUGHT}{CALL}", CALL, f"{THOUGHT}12", "no 12")
    (called,) = chat(client, **forced).choices
    assert called.message.reasoning == REASONING
    assert [call.function.name for call in called.message.tool_calls] == ["ask"]
    assert chat(client, **forced).choices[0].finish_reason == "tool_calls"
    assert chat(client, response_format=integer).choices[0].message.content == "12"
    with pytest.raises(openai.InternalServerError, match="does not match the grammar"):
        chat(client, response_format=integer)
    opened.script(f"{CALL} is no call.</think>{CALL}")
    with opened.client() as client:
        (called,) = chat(client, **forced).choices
    assert [call.function.name for call in called.message.tool_calls] == ["ask"]


def test_effort_none_turns_thinking_off_where_the_template_knows_it(
    server: ScriptedServer, client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    server.script(*["Paris."] * 5)
    assert chat(client, reasoning_effort="none").choices[0].message.content == "Paris."
    client.responses.create(model=MODEL, input="hi", reasoning={"effort": "none"})
    claude.messages.create(model=MODEL, max_tokens=9, messages=USER, thinking={"type": "disabled"})
    assert all(prompt.endswith("</think>\n\n") for prompt in server.runner.prompts)
    chat(client, reasoning_effort="high")
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    chat(client, reasoning_effort="none", extra_body=kwargs)
    *_, high, own = server.runner.prompts
    assert high.endswith("(high)<|im_start|>assistant\n")
    assert own.endswith("(none)<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": USER, "reasoning_effort": 3}),
        (CHAT, {"messages": USER, "include_reasoning": "no"}),
        (CHAT, {"messages": USER, "thinking": "on"}),
        (CHAT, {"messages": USER, "thinking_token_budget": 9}),
        ("/v1/responses", {"input": "hi", "reasoning": {"effort": 3}}),
        ("/v1/responses", {"input": "hi", "reasoning": "high"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 9, "thinking": True}),
    ],
)
def test_fields_of_a_wrong_type_are_refused(
    server: ScriptedServer, path: str, fields: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server.url}{path}", json=fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_response_has_a_reasoning_item_before_its_message(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.", "Madrid.")
    response = client.responses.create(
        model=MODEL,
        input="Capital of France?",
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
    )
    reasoning, message = response.output
    assert (reasoning.type, reasoning.summary) == ("reasoning", [])
    assert reasoning.id.startswith("rs_")
    assert [(part.type, part.text) for part in reasoning.content] == [("reasoning_text", REASONING)]
    assert response.output_text == "Paris."
    # The logprobs of the text alone: those between are line ends.
    assert "".join(one.token for one in message.content[0].logprobs).strip() == "Paris."
    num_reasoning = num_tokens(server, THOUGHT.rstrip())
    assert response.usage.output_tokens_details.reasoning_tokens == num_reasoning
    check_response(response.model_dump(exclude_unset=True))
    items: Any = [item.model_dump(exclude_none=True) for item in response.output]
    user = {"role": "user", "content": "And of Spain?"}
    client.responses.create(model=MODEL, input=[*USER, *items, user])
    assert f"assistant\n{THOUGHT}Paris.<|im_end|>" in server.runner.prompts[1]


def test_a_streamed_response_announces_its_reasoning(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{THOUGHT}Paris.")
    with client.responses.create(model=MODEL, input="hi", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [key.removeprefix("response.") for key, _ in groupby(event.type for event in events)]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    (done,) = [event.text for event in events if event.type == "response.reasoning_text.done"]
    assert "".join(deltas) == done == REASONING


def test_a_response_that_is_cut_within_its_reasoning_is_incomplete(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(THOUGHT)
    response = client.responses.create(model=MODEL, input="hi", max_output_tokens=16)
    (item,) = response.output
    assert (response.status, item.type, item.status) == ("incomplete", "reasoning", "incomplete")


def test_a_message_has_a_thinking_block_before_its_text(
    server: ScriptedServer, claude: anthropic.Anthropic
) -> None:
    server.script(f"{THOUGHT}Paris.", "Madrid.")
    message = claude.messages.create(model=MODEL, max_tokens=256, messages=USER)
    thinking, text = message.content
    assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", REASONING, "")
    assert text.text == "Paris."
    assert message.usage.output_tokens_details.thinking_tokens > 0
    blocks: Any = [block.model_dump(exclude_none=True) for block in message.content]
    history = [*USER, {"role": "assistant", "content": blocks}, *USER]
    claude.messages.create(model=MODEL, max_tokens=9, messages=history)
    assert f"assistant\n{THOUGHT}Paris.<|im_end|>" in server.runner.prompts[1]


def test_a_streamed_message_has_thinking_and_its_signature(
    server: ScriptedServer, claude: anthropic.Anthropic
) -> None:
    server.script(f"{THOUGHT}Paris.", f"{THOUGHT}Paris.")
    with claude.messages.stream(model=MODEL, max_tokens=256, messages=USER) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == REASONING
    with claude.messages.create(model=MODEL, max_tokens=256, messages=USER, stream=True) as events:
        deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    kinds = [kind for kind, _ in groupby(deltas)]
    assert kinds == ["thinking_delta", "signature_delta", "text_delta"]


def test_the_template_says_how_a_model_reasons() -> None:
    tokenizer = scripted_tokenizer(QWEN3_TEMPLATE)
    model = ModelReasoning.of(tokenizer, "auto")
    assert model == ModelReasoning(QWEN3, ("reasoning_content",))
    assert ModelReasoning.of(tokenizer, "deepseek_r1").syntax is DEEPSEEK_R1
    prompt = tokenizer.apply_chat_template(USER)
    assert model.markup(tokenizer, prompt) is not None
    for silent in (ModelReasoning.of(tokenizer, "none"), ModelReasoning.of(None, "auto")):
        assert silent.markup(tokenizer, prompt) is None
