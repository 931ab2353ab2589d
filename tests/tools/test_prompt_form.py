from __future__ import annotations

import json

import pytest

from kvflow_jax.tools.prompt_form import (
    knows_tools,
    reads_tools_of_message,
    with_prompt_form,
)
from kvflow_jax.tools.syntaxes import SYNTAXES
from tests.tools.parsing import TOOLS

HERMES = SYNTAXES["hermes"]
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        ("{%- if tools %}{{ tools }}{% endif %}", True),
        ("{% for tool in tools | default([]) %}", True),
        ("{{ tools | tojson }}", True),
        ("{# tools #}{{ messages }} You have no tools.", False),
        ("{% if messages %} tools {% endif %}", False),
        ("{% if message['tools'] %}{{ message.tools }}{% endif %}", False),
        (None, False),
    ],
)
def test_a_template_knows_tools_if_it_reads_the_variable(template: str | None, knows: bool) -> None:
    assert knows_tools(template) is knows


def test_a_template_may_read_the_tools_from_the_system_message() -> None:
    assert reads_tools_of_message("{{ message['tools'] }}")
    assert not reads_tools_of_message("{{ tools }}")
    assert not reads_tools_of_message(None)
    (system, _) = with_prompt_form([USER], TOOLS[:1], HERMES, as_field=True)
    assert (system["role"], system["content"]) == ("system", "")
    assert [one["name"] for one in json.loads(system["tools"])] == ["get_weather"]


def test_messages_without_tools_stay() -> None:
    messages = [{"role": "system", "content": "s"}, USER]
    assert with_prompt_form(messages, (), HERMES) == messages


def test_text_and_calls_are_one_message_and_results_of_a_turn_too() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    messages = [
        USER,
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        result,
        result,
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        result,
    ]
    before = [dict(message) for message in messages]
    written = with_prompt_form(messages, TOOLS, HERMES)
    assert messages == before
    text = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    response = "<tool_response>\nr\n</tool_response>"
    assert written[1:] == [
        USER,
        {"role": "assistant", "content": f"I look.\n{text}"},
        {"role": "user", "content": f"{response}\n{response}"},
        USER,
        {"role": "assistant", "content": f"{text}\n{text}"},
        {"role": "user", "content": response},
    ]


@pytest.mark.parametrize("name", SYNTAXES)
def test_each_syntax_tells_its_form(name: str) -> None:
    (system, _) = with_prompt_form([USER], TOOLS, SYNTAXES[name])
    assert system["role"] == "system"
    assert all(tool.json in system["content"] for tool in TOOLS)
    assert SYNTAXES[name].form in system["content"]
