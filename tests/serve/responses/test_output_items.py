from __future__ import annotations

from typing import Any

from kvflow_jax.serve.responses.output_items import OutputItems
from kvflow_jax.serve.responses.tools import ToolNames
from tests.serve.responses.open_responses import check_event


def test_items_follow_each_other_and_each_is_done_before_the_next() -> None:
    items: list[dict[str, Any]] = []
    output = OutputItems(items, ToolNames(), lambda: "call_1")
    events = output.text("a") + output.text("b") + output.begin_call("f")
    events += output.arguments("{") + output.arguments("}") + output.text("c")
    events += output.finish(is_cut=True)
    assert [
        (event["type"].removeprefix("response."), event["output_index"]) for event in events
    ] == [
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("output_text.delta", 0),
        ("output_text.delta", 0),
        ("output_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("content_part.added", 2),
        ("output_text.delta", 2),
        ("output_text.done", 2),
        ("content_part.done", 2),
        ("output_item.done", 2),
    ]
    assert [item["status"] for item in items] == ["completed", "completed", "incomplete"]
    assert items[1]["arguments"] == "{}"
    assert items[1]["call_id"] == "call_1"


def test_reasoning_is_an_item_of_its_own() -> None:
    items: list[dict[str, Any]] = []
    output = OutputItems(items, ToolNames(), lambda: "call_1")
    events = output.reasoning("a") + output.reasoning("b")
    assert not output.is_in_message
    events += output.text("c") + output.finish(is_cut=False)
    assert [event["type"].removeprefix("response.") for event in events[:7]] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert events[0]["item"]["content"] == []
    assert events[1]["part"] == {"type": "reasoning_text", "text": ""}
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "ab"}]
    for number, event in enumerate(events):
        check_event({**event, "sequence_number": number})


def test_reasoning_that_is_cut_is_incomplete_and_no_message_follows() -> None:
    items: list[dict[str, Any]] = []
    output = OutputItems(items, ToolNames(), lambda: "call_1")
    output.reasoning("a")
    output.finish(is_cut=True)
    assert [(item["type"], item["status"]) for item in items] == [("reasoning", "incomplete")]


def test_an_output_without_items_gets_an_empty_message() -> None:
    items: list[dict[str, Any]] = []
    output = OutputItems(items, ToolNames(), lambda: "call_1")
    assert not output.is_in_message
    output.finish(is_cut=False)
    (item,) = items
    assert item["content"][0]["text"] == ""
