"""Requests as coding agents send them, shortened, with ids and personal details replaced.

Those of Claude Code 2.1.328, Codex 0.169, OpenCode 1.18, qwen-code 0.24 and pi were recorded on
2026-11-28. Those of Cline, Continue and mini-swe-agent have a form that is likely; whole recorded
sessions of all are in ``tests/agents/recorded``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SESSION = "5e0d8a52-0000-4000-8000-000000000001"
OTHER_SESSION = "5e0d8a52-0000-4000-8000-000000000002"
BASH = {"type": "object", "properties": {"command": {"type": "string"}}}
CHAT_TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": BASH}}]
EPHEMERAL = {"type": "ephemeral"}


@dataclass(frozen=True)
class Sent:
    """One request: its path, headers and body."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    def with_headers(self, **headers: str) -> Sent:
        """Return the request with more headers; an underscore stands for a hyphen."""
        added = {name.replace("_", "-"): value for name, value in headers.items()}
        return Sent(self.path, {**self.headers, **added}, self.body)

    def with_body(self, **fields: Any) -> Sent:
        return Sent(self.path, self.headers, {**self.body, **fields})


def claude_code(session: str = SESSION, *texts: str, checksum: str = "a1b2c") -> Sent:
    """Claude Code 2: three blocks of system text, two of them marked."""
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(texts or ("Fix the test.",)):
        block = {"type": "text", "text": text}
        messages.append({"role": ("user", "assistant")[i % 2], "content": [block]})
    messages[-1]["content"][-1]["cache_control"] = EPHEMERAL
    user = {"device_id": "0" * 64, "account_uuid": "", "session_id": session}
    return Sent(
        "/v1/messages",
        {
            "user-agent": "claude-cli/2.1.328 (external, sdk-cli)",
            "anthropic-version": "2023-06-01",
            "x-app": "cli",
            "x-claude-code-session-id": session,
        },
        {
            "max_tokens": 8,
            "system": [
                {
                    "type": "text",
                    "text": f"x-anthropic-billing-header: cc_version=2.1.328; cch={checksum};",
                },
                {"type": "text", "text": "You are a coding agent.", "cache_control": EPHEMERAL},
                {
                    "type": "text",
                    "text": "Use the tools.\nWorking directory: /home/user/project",
                    "cache_control": EPHEMERAL,
                },
            ],
            "messages": messages,
            "tools": [{"name": "Bash", "description": "Run it.", "input_schema": BASH}],
            "metadata": {"user_id": json.dumps(user)},
        },
    )


def claude_code_title(session: str = SESSION) -> Sent:
    """The title that Claude Code writes of a session: no tools, and nothing follows."""
    sent = claude_code(session)
    system = [*sent.body["system"][:1], {"type": "text", "text": "Write a title."}]
    return sent.with_body(system=system, tools=[])


def claude_code_subagent(session: str = SESSION) -> Sent:
    """The first call of a subagent, for the main agent's tool ``Agent``."""
    sent = claude_code(session, "Look at the test.")
    billing = {
        "type": "text",
        "text": "x-anthropic-billing-header: cc_version=2.1.328.73f; cc_is_subagent=true;",
    }
    system = [billing, {"type": "text", "text": "You explore.", "cache_control": EPHEMERAL}]
    return sent.with_headers(x_claude_code_agent_id="ab2c42646bcac9dd5").with_body(system=system)


def codex(thread: str = SESSION, generation: int = 0, *texts: str) -> Sent:
    """Codex CLI: its instructions are messages of the developer."""
    turn = {"session_id": thread, "thread_id": thread, "window_id": f"{thread}:{generation}"}
    developer = [{"type": "input_text", "text": "You are a coding agent."}]
    items = [{"type": "message", "id": "msg_01", "role": "developer", "content": developer}]
    for i, text in enumerate(texts or ("Fix the test.",)):
        role, kind = (("user", "input_text"), ("assistant", "output_text"))[i % 2]
        part = {"type": kind, "text": text}
        items.append({"type": "message", "role": role, "content": [part]})
    return Sent(
        "/v1/responses",
        {
            "user-agent": "codex_exec/0.169.0",
            "session-id": thread,
            "thread-id": thread,
            "x-codex-window-id": f"{thread}:{generation}",
        },
        {
            "input": items,
            "tools": [{"type": "function", "name": "exec_command", "parameters": BASH}],
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": thread,
            "client_metadata": {
                "session_id": thread,
                "thread_id": thread,
                "x-codex-window-id": f"{thread}:{generation}",
                "x-codex-turn-metadata": json.dumps(turn),
            },
            "max_output_tokens": 8,
        },
    )


def codex_subagent(parent: str = SESSION, thread: str = OTHER_SESSION) -> Sent:
    """The first call of a thread that the tool ``spawn_agent`` began."""
    sent = codex(thread)
    turn = {
        "session_id": parent,
        "thread_id": thread,
        "window_id": f"{thread}:0",
        "parent_thread_id": parent,
        "subagent_kind": "thread_spawn",
    }
    metadata = {
        **sent.body["client_metadata"],
        "session_id": parent,
        "x-codex-turn-metadata": json.dumps(turn),
    }
    headers = {
        "session-id": parent,
        "x-codex-parent-thread-id": parent,
        "x-openai-subagent": "collab_spawn",
    }
    return sent.with_headers(**headers).with_body(client_metadata=metadata)


def _chat(headers: dict[str, str], system: Any = "You are an agent.", **fields: Any) -> Sent:
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "Fix the test."},
    ]
    body = {"messages": messages, "max_tokens": 8, "tools": CHAT_TOOLS, **fields}
    return Sent("/v1/chat/completions", headers, body)


def opencode(session: str = "ses_0000000000000001") -> Sent:
    """OpenCode with an OpenAI-compatible provider."""
    headers = {
        "user-agent": "opencode/1.18.33 ai-sdk/provider-utils/4.0.23",
        "x-session-affinity": session,
        "x-session-id": session,
    }
    return _chat(headers)


def opencode_subagent(parent: str, session: str = "ses_0000000000000002") -> Sent:
    """The first call of a session that the tool ``task`` began."""
    return opencode(session).with_headers(x_parent_session_id=parent)


def cline() -> Sent:
    """Cline with an OpenAI-compatible provider: parts that are marked, and no session."""
    part = {"type": "text", "text": "You are Cline.", "cache_control": EPHEMERAL}
    return _chat({"user-agent": "Cline/3.40.0"}, [part], tools=None)


def continue_dev() -> Sent:
    """Continue: no session."""
    return _chat({"user-agent": "Continue/1.5"})


def pi() -> Sent:
    """pi: no session."""
    system = "You are pi.\nCurrent date: 2026-11-28\nCurrent working directory: /home/user/project"
    return _chat({"user-agent": "OpenAI/JS 6.26.0"}, system, store=False)


def qwen_code() -> Sent:
    """qwen-code with an OpenAI-compatible server: no session."""
    return _chat({"user-agent": "QwenCode/0.24.4 (linux; x64)"}, "You are Qwen Code.")


def mini_swe_agent() -> Sent:
    """mini-swe-agent through LiteLLM: no session; the last message is marked."""
    sent = _chat({"user-agent": "litellm/1.80.0"})
    messages = [sent.body["messages"][0], {**sent.body["messages"][1], "cache_control": EPHEMERAL}]
    return sent.with_body(messages=messages)


def with_call(sent: Sent, call_id: str = "call_01") -> Sent:
    """Return the second turn of a chat: a call, and its result."""
    function = {"name": "bash", "arguments": '{"command": "pytest"}'}
    call = {"id": call_id, "type": "function", "function": function}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call_id, "content": "1 failed"}
    return sent.with_body(messages=[*sent.body["messages"], assistant, result])
