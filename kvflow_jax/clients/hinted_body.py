"""The body of a request with ``agent_hints`` in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FIELD = "agent_hints"
ROUTES = ("/chat/completions", "/completions", "/responses", "/messages")
_SPACE = b" \t\r\n"


def route_of(path: str) -> str | None:
    """Return the route of an URL's path that takes hints, None for other paths."""
    path = path.rstrip("/")
    return next((route for route in ROUTES if path.endswith(route)), None)


def read_body(content: bytes) -> Mapping[str, Any] | None:
    """Return the body of a request; None if it is no JSON object, or has hints already."""
    # In UTF-16 and UTF-32 the second byte is 0.
    if not content.lstrip(_SPACE).startswith(b"{") or b"\0" in content[:4]:
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and FIELD not in body else None


def with_hints(content: bytes, hints: Mapping[str, object], graph: str | None) -> bytes:
    """Return a body with hints as its first field; the rest stays as it is, byte by byte.

    Args:
        content: a JSON object without hints.
        graph: JSON form of the field ``step_graph``, None without one.
    """
    added = json.dumps(hints, separators=(",", ":"))
    if graph is not None:
        added = f'{added[:-1]}{"," if hints else ""}"step_graph":{graph}}}'
    rest = content.lstrip(_SPACE)[1:]
    comma = b"" if rest.lstrip(_SPACE).startswith(b"}") else b","
    return f'{{"{FIELD}":{added}'.encode() + comma + rest
