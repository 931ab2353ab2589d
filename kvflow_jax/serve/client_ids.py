"""Ids in what a client sends, checked: not empty, not long, and text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_ID_CHARS = 120  # of one id; two of them name a session
MAX_JSON_CHARS = 1 << 12  # of JSON in a text, such as ``metadata.user_id``


class ClientIds:
    """Reads ids from the headers and the body of one request.

    Args:
        headers: by name in lower case.
        fields: of the body, as the client sent them.

    Attributes:
        has_invalid: whether one that was read is empty, too long, or no text.
    """

    def __init__(self, headers: Mapping[str, str], fields: Mapping[str, Any]) -> None:
        self._headers, self._fields = headers, fields
        self.has_invalid = False

    def header(self, *names: str) -> str | None:
        """Return the first id that one of these headers has."""
        return next(
            (found for name in names if (found := self.read(self._headers.get(name)))), None
        )

    def has_header(self, name: str) -> bool:
        return name in self._headers

    def field(self, *path: str) -> str | None:
        """Return the id at a path of keys."""
        return self.read(self.value(*path))

    def value(self, *path: str) -> Any:
        """Return what the body has at a path of keys; None if it is absent."""
        value: Any = self._fields
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def json(self, text: object) -> Mapping[str, Any]:
        """Return the object that a text has as JSON; an empty one for any other."""
        if not isinstance(text, str):
            return {}
        if len(text) > MAX_JSON_CHARS:
            self.has_invalid = True
            return {}
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    def flag(self, name: str) -> bool:
        """True if a header is ``1``, ``true`` or ``yes``."""
        return self._headers.get(name, "").strip().lower() in ("1", "true", "yes")

    def is_from(self, product: str) -> bool:
        """True if the user agent begins with a name, in lower case."""
        return self._headers.get("user-agent", "").lower().startswith(product)

    def read(self, value: object) -> str | None:
        """Return a value without blanks around it if it is an id; else set ``has_invalid``."""
        if value is None:
            return None
        if isinstance(value, str) and 0 < len(text := value.strip()) <= MAX_ID_CHARS:
            return text
        self.has_invalid = True
        return None
