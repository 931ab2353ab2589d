"""Agent hints under the names by which routers and other servers know them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

MAX_TEXT_CHARS = 1 << 14  # of hints that are JSON in a text

_HEADERS = ("x-kvflow-hint", "x-agent-hint")
# Of the run, in SGLang's, Mooncake's and vllm-router's words.
_RUN_NAMES = ("task_id", "root_program_id", "program_id", "prefix_id")


def hint_data(headers: Mapping[str, str], own: Any, fields: Mapping[str, Any]) -> Any:
    """Return the hints of a request as ``agent_hints`` writes them; None if there are none.

    A field counts where it is found first: in ``agent_hints``, ``agent_hint`` (vLLM),
    ``vllm_xargs.agentic_context`` (vllm-router), ``nvext.agent_hints`` (Dynamo), then in the
    headers ``X-KVFlow-Hint`` and ``X-Agent-Hint`` (JSON in base64url).

    Args:
        headers: of the request, by name in lower case.
        own: its field ``agent_hints``.
        fields: its other fields.
    """
    sources = [
        own,
        fields.get("agent_hint"),
        _at(fields, "vllm_xargs", "agentic_context"),
        _at(fields, "nvext", "agent_hints"),
        *(_from_base64(headers[name]) for name in _HEADERS if name in headers),
    ]
    given = [_from_json(source) for source in sources if source is not None]
    records = [source for source in given if isinstance(source, Mapping)]
    if not records:
        return given[0] if given else None
    if len(records) == 1 and not any(name in records[0] for name in _RUN_NAMES):
        return records[0]
    merged: dict[str, Any] = {}
    for record in reversed(records):
        merged |= {name: value for name, value in record.items() if value is not None}
    run = next((merged[name] for name in _RUN_NAMES if name in merged), None)
    if run is not None:
        merged.setdefault("workflow_id", run)
    return merged


def _at(fields: Mapping[str, Any], name: str, key: str) -> Any:
    value = fields.get(name)
    return value.get(key) if isinstance(value, Mapping) else None


def _from_json(value: Any) -> Any:
    """Return the object that a text has as JSON; any other value as it is."""
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or value[:1] != "{":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _from_base64(text: str) -> Any:
    """Return the text of a header; the header itself if it is no base64url."""
    try:
        padded = text.strip() + "=" * (-len(text.strip()) % 4)
        return base64.urlsafe_b64decode(padded.encode()).decode()
    except (binascii.Error, ValueError):
        return text
