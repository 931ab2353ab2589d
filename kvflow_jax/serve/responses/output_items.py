"""The output of one response as items, and the events that announce their parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from kvflow_jax.serve.responses.tools import ToolNames
from kvflow_jax.serve.stream import new_id

Event = dict[str, Any]


class OutputItems:
    """Builds the items of an output, in their order, from what the model says.

    Each method returns the events that it causes, without their ``sequence_number``.

    Args:
        items: to which each item is added once it is done.
        names: under which clients sent the tools.
    """

    def __init__(
        self, items: list[dict[str, Any]], names: ToolNames, new_call_id: Callable[[], str]
    ) -> None:
        self._items = items
        self._new_call_id = new_call_id
        self._names = names
        self._open: dict[str, Any] | None = None  # the last item, which is not done

    @property
    def is_in_message(self) -> bool:
        """True if the last item is a message that is not done."""
        return self._open is not None and self._open["type"] == "message"

    def reasoning(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open["type"] != "reasoning":
            events = self.end() + self._open_reasoning()
        assert self._open is not None
        self._open["content"][0]["text"] += text
        return [*events, self._part_event("reasoning_text.delta", delta=text)]

    def text(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        events: list[Event] = []
        if not self.is_in_message:
            events = self.end() + self._open_message()
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text or logprobs:
            events.append(
                self._part_event("output_text.delta", delta=text, logprobs=list(logprobs))
            )
        return events

    def begin_call(self, name: str) -> list[Event]:
        events = self.end()
        self._open = {
            "type": "function_call",
            "id": new_id("fc"),
            "call_id": self._new_call_id(),
            **self._names.sent_fields(name),
            "arguments": "",
            "status": "in_progress",
        }
        return [*events, self._item_event("output_item.added", item=dict(self._open))]

    def arguments(self, text: str) -> list[Event]:
        """Append to the arguments of the call begun last."""
        assert self._open is not None
        self._open["arguments"] += text
        return [self._call_event("function_call_arguments.delta", delta=text)]

    def finish(self, *, is_cut: bool) -> list[Event]:
        """End the output. An output without items gets an empty message."""
        events = self.text("") if self._open is None and not self._items else []
        return events + self.end(is_cut=is_cut)

    def end(self, *, is_cut: bool = False) -> list[Event]:
        """End the last item, if it is not done."""
        item = self._open
        if item is None:
            return []
        item["status"] = "incomplete" if is_cut else "completed"
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._call_event("function_call_arguments.done", **done)]
        else:
            (part,) = item["content"]
            # Its texts and logprobs.
            done = {key: part[key] for key in ("text", "logprobs") if key in part}
            events = [
                self._part_event(f"{part['type']}.done", **done),
                self._part_event("content_part.done", part=part),
            ]
        events.append(self._item_event("output_item.done", item=item))
        self._items.append(item)
        self._open = None
        return events

    def _open_reasoning(self) -> list[Event]:
        item = {"type": "reasoning", "id": new_id("rs"), "status": "in_progress"}
        return self._open_part({**item, "summary": []}, {"type": "reasoning_text", "text": ""})

    def _open_message(self) -> list[Event]:
        item = {"type": "message", "id": new_id("msg"), "status": "in_progress"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._open_part({**item, "role": "assistant"}, part)

    def _open_part(self, item: dict[str, Any], part: dict[str, Any]) -> list[Event]:
        """Open an item whose content is one part."""
        self._open = {**item, "content": [part]}
        return [
            self._item_event("output_item.added", item={**self._open, "content": []}),
            self._part_event("content_part.added", part=copy.deepcopy(part)),
        ]

    def _item_event(self, name: str, /, **fields: Any) -> Event:
        return {"type": f"response.{name}", "output_index": len(self._items), **fields}

    def _call_event(self, name: str, /, **fields: Any) -> Event:
        assert self._open is not None
        return self._item_event(name, item_id=self._open["id"], **fields)

    def _part_event(self, name: str, /, **fields: Any) -> Event:
        return self._call_event(name, content_index=0, **fields)
