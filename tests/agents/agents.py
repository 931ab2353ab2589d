"""The coding agents that are played, and the versions of them that were."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.agents.agent import RIGHT, SUBTASK, WRONG, Agent, Call

MODEL = "scripted"
CONTEXT = 131072  # that agents are told of; the server has more


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _shell(tool: str, field: str = "command", **others: object) -> tuple[Call, ...]:
    """To read and to edit with a shell."""
    return (
        Call(tool, {field: "cat note.txt", **others}),
        Call(tool, {field: f"sed -i s/{WRONG}/{RIGHT}/ note.txt && cat note.txt", **others}),
    )


MINI_SWE_AGENT = Agent(
    name="mini-swe-agent",
    registry="PyPI",
    package="mini-swe-agent",
    version="2.4.6",
    program="mini",
    arguments=("-y", "--exit-immediately", "-m", f"openai/{MODEL}", "-t", "{task}"),
    environment={
        "OPENAI_API_BASE": "{url}/v1",
        "OPENAI_API_KEY": "none",
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_SILENT_STARTUP": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    },
    # Its shell finds no program.
    wary_arguments=(
        *("-y", "--exit-immediately", "-m", f"openai/{MODEL}", "-t", "{task}", "-c", "mini.yaml"),
        *("-c", "agent.step_limit=2", "-c", "environment.env.PATH=/nowhere"),
    ),
    calls=(
        *_shell("bash"),
        Call("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}),
    ),
)

OPENCODE = Agent(
    name="opencode",
    registry="npm",
    package="opencode-ai",
    version="1.18.33",
    program="opencode",
    arguments=("run", "--auto", "-m", f"kvflow/{MODEL}", "{task}"),
    wary_arguments=("run", "-m", f"kvflow/{MODEL}", "{task}"),
    resuming_arguments=("run", "-c", "-m", f"kvflow/{MODEL}", "{task}"),
    session_source="opencode",
    environment={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
    files={
        "{folder}/opencode.json": _json(
            {
                "provider": {
                    "kvflow": {
                        "npm": "@ai-sdk/openai-compatible",
                        "options": {"baseURL": "{url}/v1", "apiKey": "none"},
                        "models": {MODEL: {"limit": {"context": CONTEXT, "output": 8192}}},
                    }
                }
            }
        )
    },
    calls=(
        Call("read", {"filePath": "{folder}/note.txt"}),
        Call(
            "edit",
            {"filePath": "{folder}/note.txt", "oldString": WRONG, "newString": RIGHT},
        ),
    ),
)

CODEX = Agent(
    name="codex",
    registry="npm",
    package="@openai/codex",
    version="0.169.0",
    program="codex",
    arguments=(
        *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        "{task}",
    ),
    wary_arguments=("exec", "--skip-git-repo-check", "--sandbox", "read-only", "{task}"),
    resuming_arguments=(
        *("exec", "--sandbox", "read-only", "resume", "--last", "--skip-git-repo-check"),
        "{task}",
    ),
    session_source="codex",
    files={
        "{home}/.codex/config.toml": f"""model = "{MODEL}"
model_provider = "kvflow"
model_context_window = {CONTEXT}

[model_providers.kvflow]
name = "kvflow"
base_url = "{{url}}/v1"
wire_api = "responses"
"""
    },
    calls=_shell("exec_command", "cmd"),
)

CLAUDE_CODE = Agent(
    name="claude-code",
    registry="npm",
    package="@anthropic-ai/claude-code",
    version="2.1.328",
    program="claude",
    arguments=("-p", "--allowedTools", "Read,Edit", "--", "{task}"),
    resuming_arguments=("-p", "-c", "--allowedTools", "Read,Edit", "--", "{task}"),
    session_source="claude_code",
    environment={
        "ANTHROPIC_BASE_URL": "{url}",
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(CONTEXT),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    },
    calls=(
        Call("Read", {"file_path": "{folder}/note.txt"}),
        Call(
            "Edit",
            {"file_path": "{folder}/note.txt", "old_string": WRONG, "new_string": RIGHT},
        ),
    ),
)

QWEN_CODE = Agent(
    name="qwen-code",
    registry="npm",
    package="@qwen-code/qwen-code",
    version="0.24.4",
    program="qwen",
    arguments=("--auth-type", "openai", "--yolo", "--prompt", "{task}"),
    wary_arguments=("--auth-type", "openai", "--prompt", "{task}"),
    resuming_arguments=("--auth-type", "openai", "--continue", "--prompt", "{task}"),
    environment={
        "OPENAI_BASE_URL": "{url}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": MODEL,
    },
    calls=(
        Call("read_file", {"file_path": "{folder}/note.txt"}),
        Call(
            "edit",
            {"file_path": "{folder}/note.txt", "old_string": WRONG, "new_string": RIGHT},
        ),
    ),
)

CLINE = Agent(
    name="cline",
    registry="npm",
    package="cline",
    version="3.0.65",
    program="cline",
    arguments=("--auto-approve", "true", "{task}"),
    wary_arguments=("--auto-approve", "false", "{task}"),
    before=(
        (
            *("auth", "--provider", "openai", "--apikey", "none", "--modelid", MODEL),
            *("--baseurl", "{url}/v1"),
        ),
    ),
    calls=(
        Call("read_files", {"files": [{"path": "{folder}/note.txt"}]}),
        Call("editor", {"path": "{folder}/note.txt", "old_text": WRONG, "new_text": RIGHT}),
    ),
)

CONTINUE = Agent(
    name="continue",
    registry="npm",
    package="@continuedev/cli",
    version="1.5.47",
    program="cn",
    arguments=("--config", "{home}/config.yaml", "--auto", "-p", "{task}"),
    wary_arguments=("--config", "{home}/config.yaml", "-p", "{task}"),
    resuming_arguments=("--config", "{home}/config.yaml", "--resume", "-p", "{task}"),
    environment={"CONTINUE_TELEMETRY_ENABLED": "0"},
    files={
        "{home}/config.yaml": f"""name: kvflow
version: 1.0.0
schema: v1
models:
  - name: {MODEL}
    provider: openai
    model: {MODEL}
    apiBase: "{{url}}/v1"
    apiKey: none
    roles: [chat]
    capabilities: [tool_use]
"""
    },
    calls=(
        Call("Read", {"filepath": "{folder}/note.txt"}),
        Call(
            "Edit",
            {"file_path": "{folder}/note.txt", "old_string": WRONG, "new_string": RIGHT},
        ),
    ),
)

PI = Agent(
    name="pi",
    registry="npm",
    package="@mariozechner/pi-coding-agent",
    version="0.73.1",
    program="pi",
    arguments=("--provider", "kvflow", "--model", MODEL, "-p", "{task}"),
    wary_arguments=(
        *("--tools", "read,grep,find,ls", "--provider", "kvflow", "--model", MODEL),
        *("-p", "{task}"),
    ),
    resuming_arguments=(
        *("-c", "--tools", "read,grep,find,ls", "--provider", "kvflow", "--model", MODEL),
        *("-p", "{task}"),
    ),
    environment={"PI_OFFLINE": "1"},
    files={
        "{home}/.pi/agent/models.json": _json(
            {
                "providers": {
                    "kvflow": {
                        "baseUrl": "{url}/v1",
                        "api": "openai-completions",
                        "apiKey": "none",
                        "models": [{"id": MODEL, "contextWindow": CONTEXT, "maxTokens": 8192}],
                    }
                }
            }
        )
    },
    calls=(
        Call("read", {"path": "note.txt"}),
        Call("edit", {"path": "note.txt", "edits": [{"oldText": WRONG, "newText": RIGHT}]}),
    ),
)

OPENCODE_SUBAGENT = replace(
    OPENCODE,
    name="opencode-subagent",
    calls=(
        Call(
            "task",
            {"description": "Read a number", "prompt": SUBTASK, "subagent_type": "general"},
        ),
        OPENCODE.calls[1],
    ),
    subagent_calls=OPENCODE.calls[:1],
)

CODEX_SUBAGENT = replace(
    CODEX,
    name="codex-subagent",
    calls=(
        Call("multi_agent_v1__spawn_agent", {"message": SUBTASK}),
        Call("multi_agent_v1__wait_agent", {"targets": ["{agent_id}"], "timeout_ms": 60000}),
        CODEX.calls[1],
    ),
    subagent_calls=CODEX.calls[:1],
)

CLAUDE_CODE_SUBAGENT = replace(
    CLAUDE_CODE,
    name="claude-code-subagent",
    calls=(
        Call(
            "Agent",
            {"description": "Read a number", "prompt": SUBTASK, "run_in_background": False},
        ),
        *CLAUDE_CODE.calls,
    ),
    subagent_calls=CLAUDE_CODE.calls[:1],
)

# A byte is a token of the scripted model: the limits are above the first prompt, and the result of
# the first call is beyond them. Some agents compact after that call, some after the next.
_LONG = "seq 1 4000; cat note.txt"

CODEX_COMPACTION = replace(
    CODEX,
    name="codex-compaction",
    files={
        path: text.replace(
            f"{CONTEXT}\n", f"{CONTEXT}\nmodel_auto_compact_token_limit = {43_000}\n", 1
        )
        for path, text in CODEX.files.items()
    },
    calls=(Call("exec_command", {"cmd": _LONG}), CODEX.calls[1]),
    compaction="CONTEXT CHECKPOINT COMPACTION",
    calls_after_summary=CODEX.calls[:1],
)

CLAUDE_CODE_COMPACTION = replace(
    CLAUDE_CODE,
    name="claude-code-compaction",
    arguments=("-p", "--allowedTools", "Read,Edit,Bash", "--", "{task}"),
    environment={**CLAUDE_CODE.environment, "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(90_000)},
    calls=(
        Call("Bash", {"command": "seq 1 5000; cat note.txt", "description": "Read"}),
        CLAUDE_CODE.calls[0],
    ),
    compaction="CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.",
    calls_after_summary=CLAUDE_CODE.calls,
)

OPENCODE_COMPACTION = replace(
    OPENCODE,
    name="opencode-compaction",
    files={
        path: text.replace(str(CONTEXT), str(40_000)).replace(str(8192), str(2000))
        for path, text in OPENCODE.files.items()
    },
    calls=(Call("bash", {"command": _LONG, "description": "Read"}), OPENCODE.calls[1]),
    compaction="You are a context summarization agent",
    calls_after_summary=OPENCODE.calls[:1],
)

WITH_COMPACTION = (CODEX_COMPACTION, CLAUDE_CODE_COMPACTION, OPENCODE_COMPACTION)
WITH_SUBAGENTS = (OPENCODE_SUBAGENT, CODEX_SUBAGENT, CLAUDE_CODE_SUBAGENT)
# Those whose first prompt, with an answer, is within 8,192 tokens.
WITH_SHORT_PROMPTS = (MINI_SWE_AGENT, PI, CONTINUE, CLINE, OPENCODE)
AGENTS = (MINI_SWE_AGENT, OPENCODE, CODEX, CLAUDE_CODE, QWEN_CODE, CLINE, CONTINUE, PI)
