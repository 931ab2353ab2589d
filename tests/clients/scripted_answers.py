"""What the scripted model answers: to the last of these texts in its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping


def _call(name: str, /, **arguments: object) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


TEXT = "It is sunny."
CALL = "Call get_weather."
TWO_CALLS = "Call get_weather twice."
HAND_OFF = "Hand off to billing."
ASK_HELPER = "Ask the helper."
OBJECT = "Name a city."
OUTPUT_TOOL = "Fill final_result."  # pydantic-ai's
CITY_TOOL = "Fill City."  # LangChain's

ANSWERS: Mapping[str, str] = {
    "hello": TEXT,
    CALL: _call("get_weather", city="Paris"),
    TWO_CALLS: _call("get_weather", city="Paris") + _call("get_weather", city="Oslo"),
    HAND_OFF: _call("transfer_to_billing"),
    ASK_HELPER: _call("ask_helper", input="hello"),
    OBJECT: json.dumps({"name": "Paris"}),
    OUTPUT_TOOL: _call("final_result", name="Paris"),
    CITY_TOOL: _call("City", name="Paris"),
    "<tool_response>": TEXT,
}
