"""Bodies of requests as clients send them, and outcomes of their hints as the server reports."""

from __future__ import annotations

import json
from typing import Any


class Recording:
    """Hooks of an HTTP client that keep what passes.

    Attributes:
        bodies: of requests to the routes that take hints, in order.
        statuses: what the server made of the hints, in order of its answers.
        events: ("start" or "finish", agent) of these requests and their answers.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[str | None] = []
        self.events: list[tuple[str, str | None]] = []

    @property
    def hints(self) -> list[dict[str, Any] | None]:
        """``agent_hints`` of each request, None without."""
        return [body.get("agent_hints") for body in self.bodies]

    @property
    def sync_hooks(self) -> dict[str, list[Any]]:
        """For the argument ``event_hooks`` of a synchronous client."""
        return {"request": [self._note_request], "response": [self._note_response]}

    @property
    def async_hooks(self) -> dict[str, list[Any]]:
        async def note_request(request: Any) -> None:
            self._note_request(request)

        async def note_response(response: Any) -> None:
            self._note_response(response)

        return {"request": [note_request], "response": [note_response]}

    def _note_request(self, request: Any) -> None:
        assert int(request.headers["content-length"]) == len(request.content)
        self.bodies.append(json.loads(request.content))
        self.events.append(("start", _agent_of(request)))

    def _note_response(self, response: Any) -> None:
        self.statuses.append(response.headers.get("x-kvflow-hint-status"))
        self.events.append(("finish", _agent_of(response.request)))


def _agent_of(request: Any) -> str | None:
    hints: dict[str, Any] = json.loads(request.content).get("agent_hints") or {}
    return hints.get("agent_id")
