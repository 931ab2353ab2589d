"""How the template is called, and where the agent's fixed prefix ends."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import (
    PLANNER,
    SYSTEM_AND_USER,
    SYSTEM_PROMPT,
    chat_with_hints,
)


@pytest.mark.parametrize(
    ("fixed_prefix", "num_fixed"),
    [
        (None, len(SYSTEM_PROMPT)),
        ({"unit": "message", "end": 1}, len(SYSTEM_PROMPT)),
        ({"unit": "message", "end": 2}, len(SYSTEM_PROMPT + "<user>hi")),
        ({"unit": "message", "end": 99}, len(SYSTEM_PROMPT + "<user>hi")),
        ({"unit": "message", "end": 0}, 0),
        ({"unit": "token", "end": 5}, 5),
        ({"unit": None, "end": 5}, 5),
        ({"unit": "token", "end": 999}, len(SYSTEM_PROMPT + "<user>hi")),
    ],
)
def test_the_fixed_prefix_ends_at_the_given_message_or_token(
    http: httpx.Client, engine: FakeEngine, fixed_prefix: Any, num_fixed: int
) -> None:
    hints = {**PLANNER, "fixed_prefix": fixed_prefix}
    chat_with_hints(http, hints)
    assert engine.last.hints.num_fixed == num_fixed


def test_the_fixed_prefix_is_unknown_if_no_system_message_can_be_rendered_alone(
    http: httpx.Client, live: LiveServer
) -> None:
    chat_with_hints(http, PLANNER, messages=SYSTEM_AND_USER[1:])
    assert live.engine.last.hints.num_fixed is None
    live.tokenizer.rejects_system_only = True
    try:
        assert chat_with_hints(http, PLANNER)["kvflow"]["hint_status"] == "applied"
    finally:
        live.tokenizer.rejects_system_only = False
    assert live.engine.last.hints.num_fixed is None
    before = live.tokenizer.num_rendered
    # Without an agent there is no fixed prefix to compute.
    chat_with_hints(http, {"workflow_id": "w"})
    assert live.tokenizer.num_rendered == before + 1


@pytest.mark.parametrize(
    "name", ["template", "prompt_ids", "num_messages", "template_args", "hints", "tokenizer"]
)
def test_a_variable_of_the_template_may_be_named_like_an_inner_argument(
    http: httpx.Client, engine: FakeEngine, name: str
) -> None:
    chat_with_hints(http, PLANNER, chat_template_kwargs={name: 1})
    assert engine.last.hints.num_fixed == len(SYSTEM_PROMPT)
