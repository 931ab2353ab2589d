"""Edits of prompts: what they leave out, and how a client and the operator learn of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from experiments.bench.metrics_page import samples
from kvflow_jax.serve.prompt_edits import (
    PromptEdit,
    edit_prompt,
    move_environment,
    without_environment,
)
from kvflow_jax.serve.request_body import MAX_INLINE_BYTES
from tests.support.scripted_runner import ScriptedServer, scripted_server

BILLING = "x-anthropic-billing-header: cc_version=2; cch=7f1;"
LEFT = "<total_tokens>90 tokens left</total_tokens>"
BOTH = {PromptEdit.BILLING_HEADER, PromptEdit.TOTAL_TOKENS}
USER = {"role": "user", "content": f"What is {BILLING}?\n{LEFT}"}


@pytest.mark.parametrize(
    ("text", "expected", "edits"),
    [
        ("Plan.", "Plan.", set()),
        (f"{BILLING}\nPlan.", "Plan.", {PromptEdit.BILLING_HEADER}),
        (f"Plan.\n{BILLING}", "Plan.\n", {PromptEdit.BILLING_HEADER}),
        (f"Not {BILLING}", f"Not {BILLING}", set()),
        (f"Plan.\n{LEFT}\nAct.", "Plan.\nAct.", {PromptEdit.TOTAL_TOKENS}),
        (f"{BILLING}\nPlan.\n{LEFT}", "Plan.", BOTH),
        (BILLING, None, {PromptEdit.BILLING_HEADER}),
        (f"{BILLING}\n{BILLING}\nPlan.", "Plan.", {PromptEdit.BILLING_HEADER}),
        (
            f"a {BILLING} {BILLING}\n{BILLING}",
            f"a {BILLING} {BILLING}\n",
            {PromptEdit.BILLING_HEADER},
        ),
        (f"Plan.\n\n{LEFT}\n{LEFT}{LEFT}\n", "Plan.\n\n", {PromptEdit.TOTAL_TOKENS}),
        ("", "", set()),
    ],
)
def test_system_texts_lose_what_changes_each_time(
    text: str, expected: str | None, edits: set[PromptEdit]
) -> None:
    system = [] if expected is None else [{"role": "system", "content": expected}]
    edited, found = edit_prompt([{"role": "system", "content": text}, USER])
    assert (edited, found) == ([*system, USER], edits)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def bodies(system: str) -> dict[str, dict[str, Any]]:
    """Return a request of each route with this system text."""
    hi = {"role": "user", "content": "hi"}
    return {
        "/v1/chat/completions": {"messages": [{"role": "system", "content": system}, hi]},
        "/v1/responses": {"instructions": system, "input": "hi"},
        "/v1/messages": {"system": system, "messages": [hi], "max_tokens": 9},
    }


def test_edits_are_named_in_the_answer_and_counted(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kvflow_jax.serve")
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for plain, edited in zip(
            bodies("Plan.").items(), bodies(f"{BILLING}\nPlan.").items(), strict=True
        ):
            server.script("a", "b")
            answers = [http.post(path, json=body).json() for path, body in (plain, edited)]
            assert "prompt_edits" not in answers[0]["kvflow"]
            assert answers[1]["kvflow"]["prompt_edits"] == ["billing_header"]
            assert len(set(server.runner.prompts)) == 1
        assert num_edits(http, "billing_header") == 3
    assert caplog.text.count("billing_header") == 1


def test_a_flag_keeps_prompts_as_they_are() -> None:
    with (
        scripted_server(disable_prompt_edits=True) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        for path, body in bodies(f"{BILLING}\nPlan.").items():
            server.script("a")
            assert "prompt_edits" not in http.post(path, json=body).json()["kvflow"]
            assert BILLING in server.runner.prompts[-1]


@pytest.fixture(scope="module")
def unedited() -> Iterator[ScriptedServer]:
    with scripted_server(disable_prompt_edits=True) as server:
        yield server


def bodies_with(text: str) -> dict[str, dict[str, Any]]:
    """Return a request of each route with this text, and chats with it elsewhere."""
    function = {"name": "f", "arguments": json.dumps({"text": text})}
    call = {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]}
    return {
        **bodies(text),
        "/v1/completions": {"prompt": text},
        "/v1/chat/completions?arguments": {"messages": [USER, call, USER]},
        # Parsed in slices.
        "/v1/chat/completions?large": {
            "messages": [{**USER, "content": text}],
            "ignored": " " * 2 * MAX_INLINE_BYTES,
        },
    }


@pytest.mark.parametrize("path", bodies_with(""))
def test_half_a_character_is_named_and_counted_whatever_the_flags(
    unedited: ScriptedServer, path: str
) -> None:
    half = "\ud83d"  # of an emoji
    with httpx.Client(base_url=unedited.url, timeout=60) as http:
        before = num_edits(http, "lone_surrogates")
        for text in (f"Plan {half}.", "Plan it."):
            unedited.script("a")
            answer = http.post(path, content=json.dumps(bodies_with(text)[path]))
            edits = answer.json()["kvflow"].get("prompt_edits")
            assert edits == (["lone_surrogates"] if half in text else None)
            assert text.replace(half, "\ufffd") in unedited.runner.prompts[-1]
        assert num_edits(http, "lone_surrogates") == before + 1


def num_edits(http: httpx.Client, edit: str) -> float:
    found = samples(http.get("/metrics").text, "kvflow:prompt_edits_total")
    return sum(value for labels, value in found if labels["edit"] == edit)


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


HI = {"role": "user", "content": "Hi."}


@pytest.mark.parametrize(
    ("text", "kept", "moved"),
    [
        ("Plan.", "Plan.", ""),
        # pi, OpenCode, Claude Code, qwen-code.
        (
            "Plan.\nCurrent date: 2026-11-28\nCurrent working directory: /home/user/a",
            "Plan.",
            "Current date: 2026-11-28\nCurrent working directory: /home/user/a",
        ),
        (
            "Plan.\n<env>\n  Working directory: /a\n  Platform: linux\n"
            "  Today's date: Sat Nov 28 2026\n</env>",
            "Plan.\n<env>\n  Platform: linux\n</env>",
            "Working directory: /a\nToday's date: Sat Nov 28 2026",
        ),
        (
            " - Primary working directory: /a\n - Shell: bash",
            " - Shell: bash",
            "- Primary working directory: /a",
        ),
        ("The current date is: Saturday", None, "The current date is: Saturday"),
        ("Tell the current date: ask.\ncwd", "Tell the current date: ask.\ncwd", ""),
        (" " * 9 + "cwd: /a", " " * 9 + "cwd: /a", ""),
        ("\n" * (1 << 23) + "cwd: /a", "\n" * (1 << 23) + "cwd: /a", ""),
    ],
)
def test_the_environment_is_moved_behind_the_system_text(
    text: str, kept: str | None, moved: str
) -> None:
    before = [] if kept is None else [system(kept)]
    user = {**HI, "content": f"{moved}\n\nHi."} if moved else HI
    assert move_environment([system(text), HI, HI]) == ([*before, user, HI], bool(moved))
    assert without_environment([system(text)]) == before


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [system("cwd: /a")],
        [system("cwd: /a"), {"role": "assistant", "content": "Hi."}, HI],
        [HI, system("cwd: /a")],
    ],
)
def test_an_environment_without_a_user_behind_it_stays(messages: list[dict[str, Any]]) -> None:
    assert move_environment(messages) == (messages, False)


def test_sessions_of_other_folders_share_their_system_text_where_a_flag_says_so() -> None:
    texts = [f"Plan.\nCurrent working directory: /home/user/{name}" for name in "ab"]
    with (
        scripted_server(move_environment=True) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        for text in texts:
            for path, body in bodies(text).items():
                server.script("a")
                answer = http.post(path, json=body).json()
                assert answer["kvflow"]["prompt_edits"] == ["environment"]
                (prompt,) = server.runner.prompts
                head, _, rest = prompt.partition("<|im_end|>")
                assert head == "<|im_start|>system\nPlan."
                assert text.partition("\n")[2] in rest
