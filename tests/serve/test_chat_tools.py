"""Tools on the chat route: scripted outputs through the production engine, real clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.chat_tools import ChatTools, ModelTools, ToolChoice, ToolTemplate
from kvflow_jax.tools.syntaxes import SYNTAXES
from kvflow_jax.tools.tool import read_tools
from tests.serve.serve_requests import CHAT, error_of
from tests.support.scripted_runner import MODEL, ScriptedServer, scripted_server, scripted_tokenizer
from tests.tools.parsing import tool

TOOLS = [tool("get_weather", city={"type": "string"}), tool("ask", text={"type": "string"})]
USER = [{"role": "user", "content": "Weather in Paris?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ASK = '<tool_call>\n{"name": "ask", "arguments": {"text": "why?"}}\n</tool_call>'

MISTRAL_TEMPLATE = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
MISTRAL_TOKENS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[INST]", "[/INST]")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """A server of a model whose template knows no tools."""
    with scripted_server(max_body_mib=2.0) as server:
        yield server


@pytest.fixture(scope="module")
def mistral() -> Iterator[ScriptedServer]:
    """A server of a model whose call markers are special tokens."""
    with scripted_server(MISTRAL_TEMPLATE, MISTRAL_TOKENS) as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def chat(client: openai.OpenAI, messages: Any = USER, tools: Any = TOOLS, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, tools=tools, **fields)


def stream(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return [chunk.choices[0] for chunk in chat(client, stream=True, **fields) if chunk.choices]


def test_an_answer_in_text_has_no_calls(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("It is sunny.", "It is sunny.")
    (choice,) = chat(client).choices
    assert (choice.message.content, choice.finish_reason) == ("It is sunny.", "stop")
    assert "tool_calls" not in choice.message.model_fields_set
    chunks = stream(client)
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "It is sunny."
    assert all(chunk.delta.tool_calls is None for chunk in chunks)
    assert chunks[-1].finish_reason == "stop"


def test_a_call_has_a_null_content_or_the_text_before_it(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(CALL, f"I look.{CALL}")
    (choice,) = chat(client).choices
    (call,) = choice.message.tool_calls
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert call.id.startswith("call_")
    assert chat(client).choices[0].message.content == "I look."


def test_a_streamed_call_opens_with_its_name_and_continues_with_arguments(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"I look.\n{CALL}\n{ASK}")
    chunks = stream(client)
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "I look.\n"
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    for index, (name, arguments) in enumerate(
        [("get_weather", '{"city": "Paris"}'), ("ask", '{"text": "why?"}')]
    ):
        first, *rest = [piece for piece in pieces if piece.index == index]
        assert (first.type, first.function.name, first.function.arguments) == ("function", name, "")
        assert all(piece.id is piece.type is piece.function.name is None for piece in rest)
        assert rest  # how many is a matter of wake-ups
        assert "".join(piece.function.arguments for piece in rest) == arguments
    assert len({piece.id for piece in pieces if piece.id}) == 2
    assert max(len(chunk.delta.tool_calls or []) for chunk in chunks) == 1


def test_the_streaming_helper_of_the_client_sees_the_same_calls(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{CALL}\n{ASK}")
    with client.chat.completions.stream(model=MODEL, messages=USER, tools=TOOLS) as events:
        message = events.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather", "ask"]


def test_parallel_tool_calls_false_is_at_most_one_call(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{CALL}\n{ASK}", f"{CALL}\n{ASK}", f"{CALL}\n{ASK}")
    one, both = chat(client, parallel_tool_calls=False), chat(client)
    assert [len(answer.choices[0].message.tool_calls) for answer in (one, both)] == [1, 2]
    pieces = [call for chunk in stream(client, parallel_tool_calls=False)
              for call in chunk.delta.tool_calls or []]  # fmt: skip
    assert {piece.index for piece in pieces} == {0}


def test_tool_choice_none_keeps_the_prompt_and_makes_no_calls(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a", CALL)
    chat(client)
    (choice,) = chat(client, tool_choice="none").choices
    assert (choice.message.content, choice.message.tool_calls) == (CALL, None)
    assert choice.finish_reason == "stop"
    assert server.runner.prompts[0] == server.runner.prompts[1]


def test_a_call_that_max_tokens_cuts_keeps_its_partial_arguments(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    cut = CALL[: CALL.index("ris")]
    num_tokens = len(server.tokenizer.encode(cut, add_special_tokens=False))
    server.script(CALL, CALL)
    (choice,) = chat(client, max_tokens=num_tokens).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Pa'
    assert stream(client, max_tokens=num_tokens)[-1].finish_reason == "length"


@pytest.mark.parametrize("stop", ["<tool", "Paris", '"', "</tool_call>", "\n"])
def test_a_stop_string_does_not_fire_within_a_call(
    server: ScriptedServer, client: openai.OpenAI, stop: str
) -> None:
    server.script(CALL)
    (choice,) = chat(client, stop=stop).choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_a_stop_string_fires_outside_of_calls(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("One. Two.", f"{CALL}Done. More.", "a <tool b")
    first = chat(client, stop=".").choices[0]
    assert (first.message.content, first.finish_reason) == ("One", "stop")
    second = chat(client, stop=".").choices[0]
    assert (second.message.content, len(second.message.tool_calls)) == ("Done", 1)
    assert chat(client, stop="<tool").choices[0].message.content == "a "


def test_choices_are_parsed_apart(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script(CALL, "text")
    choices = chat(client, n=2).choices
    assert {choice.finish_reason for choice in choices} == {"tool_calls", "stop"}
    server.script(CALL, "text")
    chunks = stream(client, n=2)
    assert {c.finish_reason for c in chunks if c.finish_reason} == {"tool_calls", "stop"}


def test_logprobs_cover_every_token_of_a_call(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(CALL, CALL)
    (choice,) = chat(client, logprobs=True, top_logprobs=2).choices
    assert "".join(token.token for token in choice.logprobs.content) == CALL
    chunks = stream(client, logprobs=True)
    tokens = [t.token for chunk in chunks if chunk.logprobs for t in chunk.logprobs.content]
    assert "".join(tokens) == CALL


def test_a_model_without_tools_in_its_template_is_told_of_them_in_the_system_message(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a", "b")
    chat(client)
    chat(client, [{"role": "system", "content": "Be brief."}, *USER])
    for prompt, before in zip(server.runner.prompts, ("", "Be brief.\n\n"), strict=True):
        assert prompt.startswith(f"<|im_start|>system\n{before}# Tools\n\n")
        assert '<tools>\n{"type": "function", "function": {"name": "get_weather"' in prompt
        assert prompt.count("<|im_start|>system") == 1


HISTORY = [
    *USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": "get_weather", "arguments": arguments},
            }
            for i, arguments in enumerate(['{"city":"Paris"}', "not {json"])
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
]


def test_the_calls_and_results_of_the_history_are_in_the_prompt(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a")
    client.chat.completions.create(model=MODEL, messages=HISTORY)
    (prompt,) = server.runner.prompts
    assert f"<|im_start|>assistant\n{CALL}\n" in prompt
    assert '"arguments": not {json}' in prompt
    results = "\n".join(f"<tool_response>\n{r}\n</tool_response>" for r in ("sunny", "rain"))
    assert f"<|im_start|>user\n{results}<|im_end|>" in prompt


def test_an_agent_calls_and_reads_results_over_several_turns(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(CALL, ASK, "Sunny, because.")
    messages: list[Any] = list(USER)
    for result in ("sunny", "because"):
        message = chat(client, messages).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        call_id = message.tool_calls[0].id
        messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
    last = chat(client, messages)
    assert last.choices[0].message.content == "Sunny, because."
    # The second and third turn read the whole of the turn before from the cache.
    assert last.usage.prompt_tokens_details.cached_tokens > len(server.runner.prompts[1]) - 100
    assert server.runner.prompts[2].startswith(server.runner.prompts[1])


def test_special_tokens_of_the_syntax_reach_the_parser_and_never_the_client(
    mistral: ScriptedServer,
) -> None:
    call = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
    mistral.script(f"I look.{call}", "a[ARGS]b[INST]c", "[TOOL_CALLS]", call, call)
    with mistral.client() as client:
        (choice,) = chat(client).choices
        assert choice.message.content == "I look."
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Paris"}'
        assert len(choice.message.tool_calls[0].id) == 9
        assert chat(client).choices[0].message.content == "abc"
        assert chat(client).choices[0].message.content == ""
        assert "[" not in chat(client, tool_choice="none").choices[0].message.content
        # Its template gets the tools, and ids of the length that it asks for.
        chat(client, [*HISTORY[:1], {**HISTORY[1], "tool_calls": HISTORY[1]["tool_calls"][:1]},
                      HISTORY[2]])  # fmt: skip
    first, last = mistral.runner.prompts[0], mistral.runner.prompts[-1]
    assert first.startswith('[AVAILABLE_TOOLS][{"type": "function", "function": {"name":')
    assert '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}</s>[TOOL_RESULTS]sunny' in last


def test_a_template_that_names_arguments_gets_those_that_are_no_json() -> None:
    template = (
        "{{ tools or '' }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for key, value in c.function.arguments | items %}<{{ key }}>{{ value }}{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    tokenizer = scripted_tokenizer(template)
    tools = ChatTools(ModelTools.of(tokenizer, "auto"), (), ToolChoice(allows_calls=False))
    calls = [{"function": {"name": "f", "arguments": value}} for value in ({"x": 1}, "not {json")]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    prompt_ids = ToolTemplate(tokenizer, tools).apply_chat_template(messages)
    assert tokenizer.decode(prompt_ids) == "<x>1<text>not {json"
    del calls[1:]
    with pytest.raises(InvalidRequestError):
        ToolTemplate(tokenizer, tools).apply_chat_template(messages, chat_template="{{ 1 / 'a' }}")


def test_only_the_template_and_the_call_syntax_write_control_tokens() -> None:
    tokens = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
    tokenizer = scripted_tokenizer(special_tokens=tokens)
    ids = tokenizer.special_token_ids(tokens)
    model = ModelTools.of(tokenizer, "hermes")

    def count(text: str) -> list[int]:
        """Return the number of each token in a chat whose texts end with ``text``."""
        calls = [{"id": "1", "function": {"name": "ask", "arguments": {"text": text}}}]
        messages = [
            {"role": "system", "content": text},
            {"role": "assistant", "content": text, "tool_calls": calls},
            {"role": "tool", "content": text, "tool_call_id": "1"},
            {"role": "assistant", "content": text},
        ]
        declared = read_tools([tool("ask", text={"type": "string", "description": text})])
        tools = ChatTools(model, declared, ToolChoice(allows_calls=True))
        template = ToolTemplate(tokenizer, tools, tokenizer.control_tokens)
        prompt = template.apply_chat_template(
            messages, add_generation_prompt=False, continue_final_message=True, style=text
        )
        return [prompt.count(ids[token]) for token in tokens]

    plain = count("text")
    assert all(plain)
    assert count("".join(tokens)) == plain


def test_arguments_nested_too_deep_are_text_or_refused(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("a")
    deep = '{"x":' * 100 + "1" + "}" * 100
    function = {"name": "f", "arguments": deep}
    message = {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}
    assert http.post(CHAT, json={"messages": [message, *USER]}).status_code == 200
    function["arguments"] = json.loads(deep)
    error = error_of(http.post(CHAT, json={"messages": [message, *USER]}), 400)
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"


def test_tools_that_differ_in_the_order_of_keys_share_their_prefix(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script("a", "b")
    chat(client)
    shuffled = [
        {"function": dict(reversed(one["function"].items())), "type": "function", "x": None}
        for one in TOOLS
    ]
    chat(client, tools=shuffled)
    assert server.runner.prompts[0] == server.runner.prompts[1]


def test_required_calls_follow_a_grammar(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script(f"{CALL}\n{ASK}", "It is sunny.", CALL.replace('"Paris"', "1"))
    (choice,) = chat(client, tool_choice="required", parallel_tool_calls=True).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather", "ask"]
    assert choice.finish_reason == "tool_calls"
    for _ in range(2):  # texts that do not follow it
        with pytest.raises(openai.InternalServerError):
            chat(client, tool_choice="required")


def test_a_model_that_knows_no_tools_makes_the_one_call_that_it_must(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(f"{CALL}\n{CALL}", f"{CALL}\n{CALL}")
    (choice,) = chat(client, tool_choice="required").choices
    assert len(choice.message.tool_calls) == 1
    assert len(chat(client).choices[0].message.tool_calls) == 2


def test_a_required_call_that_is_cut_before_its_name_is_no_text(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    server.script(CALL, f"{CALL}\n{ASK}")
    (choice,) = chat(client, tool_choice="required", max_tokens=8).choices
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    max_tokens = len(server.tokenizer.encode(f"{CALL}\n")) + 8
    fields = {"tool_choice": "required", "parallel_tool_calls": True, "max_tokens": max_tokens}
    (choice,) = chat(client, **fields).choices
    assert (choice.message.content, len(choice.message.tool_calls)) == (None, 1)


def test_a_named_function_is_called_once(server: ScriptedServer, client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "ask"}}
    server.script(ASK, CALL, f"{ASK}\n{ASK}")
    (call,) = chat(client, tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == "ask"
    with pytest.raises(openai.InternalServerError):
        chat(client, tool_choice=named)
    # What follows the end of a grammar is not sampled.
    assert len(chat(client, tool_choice=named).choices[0].message.tool_calls) == 1


def test_with_a_response_format_an_answer_is_calls_or_json(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    json_schema = {"name": "sum", "schema": schema, "strict": True}
    fields = {"response_format": {"type": "json_schema", "json_schema": json_schema}}
    server.script(CALL, '{"sum": 4}', "It is sunny.")
    assert chat(client, **fields).choices[0].message.tool_calls
    (choice,) = chat(client, **fields).choices
    assert (choice.message.content, choice.message.tool_calls) == ('{"sum": 4}', None)
    with pytest.raises(openai.InternalServerError):
        chat(client, **fields)
    server.script('{"sum": 4}')
    assert chat(client, tool_choice="none", **fields).choices[0].message.content == '{"sum": 4}'


def test_a_grammar_that_nothing_can_follow_is_a_400(
    server: ScriptedServer, client: openai.OpenAI
) -> None:
    endless = tool("get_weather", city={"$ref": "#/$defs/A"})
    endless["function"]["parameters"] |= {
        "required": ["city"],
        "$defs": {"A": {"$ref": "#/$defs/A"}},
    }
    server.script(CALL)
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, tools=[endless], tool_choice="required")
    assert error.value.code == "grammar_error"


def test_arguments_of_strict_tools_conform(server: ScriptedServer, client: openai.OpenAI) -> None:
    strict = tool("get_weather", city={"enum": ["Paris"]})
    strict["function"]["strict"] = True
    server.script(f"I look.{CALL}{ASK}", CALL.replace("Paris", "Rome"))
    message = chat(client, tools=[strict, TOOLS[1]]).choices[0].message
    assert (message.content, len(message.tool_calls)) == ("I look.", 2)
    with pytest.raises(openai.InternalServerError):
        chat(client, tools=[strict])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": {}}, "tools", None),
        ({"tools": [3]}, "tools[0].type", None),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", None),
        ({"tools": [{"type": "function"}]}, "tools[0].function", None),
        ({"tools": [*TOOLS, tool("a b")]}, "tools[2].function.name", None),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name", None),
        ({"tools": [tool(f"t{i}") for i in range(1025)]}, "tools", None),
        ({"tools": [tool("t", x={"description": "d" * 1_100_000})]}, "tools", None),
        ({"tool_choice": "any"}, "tool_choice", None),
        ({"tool_choice": {"type": "function"}}, "tool_choice", None),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", None),
        (
            {
                "tools": [tool("f", x={"not": {}})],
                "tool_choice": "required",
            },
            "tool_choice",
            None,
        ),
        ({"ebnf": 'root ::= "a"'}, "ebnf", None),
        ({"tool_choice": "required", "tools": []}, "tool_choice", None),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", None),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
            None,
        ),
        # 500 tools are more than the context.
        (
            {"tools": [tool(f"t{i}", x={"description": "d" * 20}) for i in range(500)]},
            "prompt",
            "context_length_exceeded",
        ),
        (
            {"messages": [*USER, {"role": "tool", "tool_call_id": "1", "content": "x" * 10**6}]},
            "prompt",
            "context_length_exceeded",
        ),
    ],
)
def test_what_is_refused_is_named(
    http: httpx.Client, fields: dict[str, Any], param: str, code: str | None
) -> None:
    body = {"messages": USER, "tools": TOOLS, **fields}
    error = error_of(http.post(CHAT, json=body), 400)
    assert error["param"] == param
    assert code is None or error["code"] == code


def test_a_tool_result_beyond_the_body_limit_is_a_413(http: httpx.Client) -> None:
    message = {"role": "tool", "tool_call_id": "1", "content": "x" * 10_000_000}
    error_of(http.post(CHAT, json={"messages": [*USER, message]}), 413)


def test_the_fixed_prefix_of_an_agent_includes_its_tools(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("a", "b")
    for content in ("one", "two"):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
        ]
        hints = {"workflow_id": content, "agent_id": "reader"}
        body = {"messages": messages, "tools": TOOLS, "agent_hints": hints}
        answer = http.post(CHAT, json=body).json()
        assert answer["kvflow"]["hint_status"] == "applied"
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > len(json.dumps(TOOLS))


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_parser_is_chosen_by_name(name: str) -> None:
    tokenizer = scripted_tokenizer()
    assert ModelTools.of(tokenizer, name).syntax is SYNTAXES[name]
    assert ModelTools.of(None, name).syntax is SYNTAXES[name]
