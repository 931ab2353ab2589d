"""Tools in the prompt of a model whose chat template knows none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvflow_jax.tools.syntaxes.base import Call, CallSyntax
from kvflow_jax.tools.tool import Tool

# The variable in a statement or an expression; the word alone may be prose of the template, a
# string, or a field.
_TOOLS_VARIABLE = re.compile(r"\{[%{](?:[^%}]|%(?!\})|\}(?!\}))*(?<![\w.'\"])tools(?![\w'\"])")
# Phi-4-mini's template reads the tools from the system message.
_TOOLS_OF_MESSAGE = re.compile(r"message(\.tools\b|\[['\"]tools['\"]\])")

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


def reads_tools_of_message(chat_template: str | None) -> bool:
    """True if a chat template writes the ``tools`` of the system message."""
    return chat_template is not None and _TOOLS_OF_MESSAGE.search(chat_template) is not None


def with_prompt_form(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    syntax: CallSyntax,
    *,
    as_field: bool = False,
) -> list[dict[str, Any]]:
    """Return messages of the roles system, user and assistant alone, all of them text.

    The system message tells of the tools; without one, it is added. Calls are part of the text of
    the assistant's messages, and the results of one turn are a message of the user.

    Args:
        messages: as ``read_messages`` of the server returns them.
        as_field: the tools are the field ``tools`` of the system message, not part of its text.
    """
    written: list[dict[str, Any]] = []
    if tools:
        has_system = bool(messages) and messages[0]["role"] == "system"
        content = messages[0]["content"] if has_system else ""
        messages = messages[has_system:]
        written.append(_system_message(content, tools, syntax, as_field=as_field))
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


def _system_message(
    content: str, tools: Sequence[Tool], syntax: CallSyntax, *, as_field: bool
) -> dict[str, Any]:
    if as_field:
        functions = [tool.definition["function"] for tool in tools]
        listed = json.dumps(functions, ensure_ascii=False)
        return {"role": "system", "content": content, "tools": listed}
    description = _DESCRIPTION.format(
        tools="\n".join(tool.json for tool in tools), form=syntax.form
    )
    text = f"{content}\n\n{description}" if content else description
    return {"role": "system", "content": text}


def _read_call(call: Mapping[str, Any]) -> Call:
    function = call["function"]
    return Call(function["name"], function.get("arguments") or {})
