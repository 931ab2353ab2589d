from __future__ import annotations

import pytest

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.generation import Usage
from kvflow_jax.serve.messages.message import MessageBuilder


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": 1, "b', {"a": 1}),
        ("", {}),
        ("[1]", {}),
        ("no JSON", {}),
    ],
)
def test_arguments_are_read_as_far_as_they_go(arguments: str, read: object) -> None:
    message = MessageBuilder("msg_1", "m")
    message.begin_call("f")
    message.arguments(arguments)
    message.finish(FinishReason.LENGTH, None)
    body = message.full(Usage())
    assert body["content"][0]["input"] == read
    assert body["stop_reason"] == "max_tokens"


def test_thinking_is_signed_and_comes_before_the_text() -> None:
    message = MessageBuilder("msg_1", "m")
    events = message.thinking("a") + message.thinking("b") + message.text("c")
    message.finish(FinishReason.STOP, None)
    assert [event.get("delta", {}).get("type") for event in events] == [
        None,
        "thinking_delta",
        "thinking_delta",
        "signature_delta",
        None,
        None,
        "text_delta",
    ]
    body = message.full(Usage(reasoning_tokens=3))
    assert body["content"] == [
        {"type": "thinking", "thinking": "ab", "signature": ""},
        {"type": "text", "text": "c"},
    ]
    assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 3}


def test_blocks_are_numbered_and_stopped_in_order() -> None:
    message = MessageBuilder("msg_1", "m")
    events = message.text("a") + message.begin_call("f") + message.arguments("{}")
    events += message.text("b") + message.finish(FinishReason.STOP, None)
    assert [(event["type"].removeprefix("content_block_"), event["index"]) for event in events] == [
        ("start", 0),
        ("delta", 0),
        ("stop", 0),
        ("start", 1),
        ("delta", 1),
        ("stop", 1),
        ("start", 2),
        ("delta", 2),
        ("stop", 2),
    ]
    delta, stop = message.stop(Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=2))
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert (delta["usage"]["input_tokens"], delta["usage"]["cache_read_input_tokens"]) == (2, 3)
    assert stop == {"type": "message_stop"}


@pytest.mark.parametrize(("has_call", "reason"), [(True, "tool_use"), (False, "stop_sequence")])
def test_a_call_before_a_stop_sequence_is_to_be_run(has_call: bool, reason: str) -> None:
    message = MessageBuilder("msg_1", "m")
    if has_call:
        message.begin_call("f")
    message.text("more ")
    message.finish(FinishReason.STOP, "END")
    body = message.full(Usage())
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, "END")
