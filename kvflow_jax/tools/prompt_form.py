"""Tools in the prompt of a model whose chat template knows none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvflow_jax.tools.syntaxes.base import Call, CallSyntax
from kvflow_jax.tools.tool import Tool

# The variable in a statement or an expression; the word alone may be prose of the template.
_TOOLS_VARIABLE = re.compile(r"\{[%{](?:[^%}]|%(?!\})|\}(?!\}))*\btools\b")

# The wording of Hermes and Qwen, which many models have seen.
_DESCRIPTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, {form}"""


def knows_tools(chat_template: str | None) -> bool:
    """True if a chat template writes the tools that it is given."""
    return chat_template is not None and _TOOLS_VARIABLE.search(chat_template) is not None


def with_prompt_form(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], syntax: CallSyntax
) -> list[dict[str, Any]]:
    """Return messages of the roles system, user and assistant alone, all of them text.

    The system message tells of the tools; without one, it is added. Calls are part of the text of
    the assistant's messages, and the results of one turn are a message of the user.

    Args:
        messages: as ``read_messages`` of the server returns them.
    """
    written: list[dict[str, Any]] = []
    if tools:
        described = _DESCRIPTION.format(
            tools="\n".join(tool.json for tool in tools), form=syntax.form
        )
        if messages and messages[0]["role"] == "system":
            described = f"{messages[0]['content']}\n\n{described}"
            messages = messages[1:]
        written.append({"role": "system", "content": described})
    is_after_result = False
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            result = syntax.write_result(content)
            if is_after_result:
                written[-1]["content"] += f"\n{result}"
            else:
                written.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            calls = [_read_call(call) for call in message["tool_calls"]]
            text = syntax.write_calls(calls)
            content = f"{content}\n{text}" if content else text
            others = {key: value for key, value in message.items() if key != "tool_calls"}
            written.append({**others, "content": content})
        else:
            written.append(dict(message))
        is_after_result = role == "tool"
    return written


def _read_call(call: Mapping[str, Any]) -> Call:
    function = call["function"]
    return Call(function["name"], function.get("arguments") or {})
