from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.reasoning.history import fields_read, with_history


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{{ message.reasoning_content }}", ("reasoning_content",)),
        ("{% if 'reasoning_content' in message %}", ("reasoning_content",)),
        ("{{ message['reasoning'] }}", ("reasoning",)),
        ("{{ m.reasoning or m.reasoning_content }}", ("reasoning_content", "reasoning")),
        ("Use reasoning. {{ reasoning_effort }} {{ message.content }}", ()),
        (None, ()),
    ],
)
def test_the_fields_that_a_template_reads(template: str | None, fields: tuple[str, ...]) -> None:
    assert fields_read(template) == fields


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_under_either_name_is_in_the_fields_that_are_read(name: str) -> None:
    turn: dict[str, Any] = {"role": "assistant", "content": "Paris."}
    messages = [{"role": "user", "content": "hi", name: "mine"}, {**turn, name: "Hm."}]
    user = {"role": "user", "content": "hi"}
    assert with_history(messages, ()) == [user, turn]
    assert with_history(messages, ("reasoning",)) == [user, {**turn, "reasoning": "Hm."}]
    assert with_history([{**turn, name: ""}], ("reasoning",)) == [turn]
