"""Agent hints under the names by which routers and other servers know them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_TEXT_CHARS = 1 << 14  # of hints that are JSON in a text

_HEADERS = ("x-kvflow-hint", "x-agent-hint")
# Of the run, in SGLang's, Mooncake's and vllm-router's words. The first that is given counts.
_RUN_NAMES = ("workflow_id", "task_id", "root_program_id", "program_id", "prefix_id")
_VLLM_TTL_S = 300.0  # of vLLM's ``cache_control`` that has none


class GivenHints(NamedTuple):
    """The hints that a request gives, all forms together.

    Attributes:
        fields: as ``agent_hints`` writes them.
        is_clipped: whether a form was no object, or a field that another form precedes differs.
    """

    fields: dict[str, Any]
    is_clipped: bool


def read_given_hints(
    headers: Mapping[str, str], own: Any, fields: Mapping[str, Any]
) -> GivenHints | None:
    """Return the hints of a request; None if it gives none in any form.

    A field counts where it is found first: in ``agent_hints``, ``agent_hint`` (vLLM),
    ``vllm_xargs.agentic_context`` (vllm-router), ``nvext.agent_hints`` (Dynamo), then in the
    headers ``X-KVFlow-Hint`` and ``X-Agent-Hint`` (JSON in base64url).

    Args:
        headers: of the request, by name in lower case.
        own: its field ``agent_hints``.
        fields: its other fields.
    """
    forms = [
        own,
        fields.get("agent_hint"),
        _at(fields, "vllm_xargs", "agentic_context"),
        _at(fields, "nvext", "agent_hints"),
        *(_from_base64(headers[name]) for name in _HEADERS if name in headers),
    ]
    given = [_from_json(form) for form in forms if form is not None]
    if not given:
        return None
    merged: dict[str, Any] = {}
    is_clipped = False
    for form in given:
        if isinstance(form, Mapping):
            is_clipped |= _add(merged, form)
        else:
            is_clipped = True
    runs = {name: merged.pop(name) for name in _RUN_NAMES if name in merged}
    for run in runs.values():
        is_clipped |= _add(merged, {"workflow_id": run})
    if "cache_control" in merged:
        is_clipped |= _add(merged, _from_cache_control(merged.pop("cache_control"), merged))
    return GivenHints(merged, is_clipped)


def _add(fields: dict[str, Any], more: Mapping[str, Any]) -> bool:
    """Add the fields that are not there yet; return whether one is there with another value."""
    differs = False
    for name, value in more.items():
        if value is None:
            continue
        if name not in fields:
            fields[name] = value
            continue
        try:
            differs |= bool(fields[name] != value)
        except RecursionError:  # both are nested deeply
            differs = True
    return differs


def _from_cache_control(control: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's ``cache_control`` as other fields; what these cannot say stays under its name.

    Args:
        fields: the others of the same hints.
    """
    if not isinstance(control, Mapping) or control.get("type") not in (None, "ephemeral"):
        return {"cache_control": control}
    ttl_s = control.get("ttl")
    if ttl_s is None:
        ttl_s = _VLLM_TTL_S
    is_number = isinstance(ttl_s, int | float) and not isinstance(ttl_s, bool)
    said: dict[str, Any] = {"cache_ttl_ms": 1000 * ttl_s if is_number else ttl_s}
    if "session_id" not in fields and "reuse_hint" not in fields:
        said["reuse_hint"] = "keep"
    rest = {name: value for name, value in control.items() if name not in ("type", "ttl")}
    return said | ({"cache_control": rest} if rest else {})


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
