"""Adds hints to requests: whose call it is, and the graph of its run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kvflow_jax.clients.call import Call
from kvflow_jax.clients.callers import Callers
from kvflow_jax.clients.conversations import Conversations
from kvflow_jax.clients.hinted_body import FIELD, read_body, route_of, with_hints
from kvflow_jax.clients.run_ends import RunEnds

logger = logging.getLogger(__name__)

# A request's header as HTTP clients have them: of httpx and of httpx2.
_AUTHORIZATION = ("authorization", "x-api-key")
_STATUS_HEADER = "x-kvflow-hint-status"  # of an answer of this project's server
_REFUSED = (400, 422)


@dataclass(frozen=True, slots=True)
class Hinted:
    """A request with hints, of the class of the one that was to be sent."""

    request: Any
    call: Call
    route: str


def hints_of(call: Call) -> dict[str, object]:
    """Return ``agent_hints`` of a call, without the graph."""
    hints: dict[str, object] = {}
    if call.run is not None:
        hints["workflow_id"] = call.run.id
    if call.agent is not None:
        hints["agent_id"] = call.agent
    if call.session is not None:
        hints["session_id"] = call.session
    return hints


class Hinter:
    """Adds hints to the requests of one HTTP client. Thread-safe.

    No request fails because of hints: what goes wrong is logged once, and the request is sent as
    it was.

    Args:
        callers: say whose call is being made.
        ends: tells the server which runs are over.
    """

    def __init__(self, callers: Callers, ends: RunEnds) -> None:
        self._callers, self._ends = callers, ends
        self._conversations = Conversations()
        self._refusing: set[str] = set()  # hosts that do not take the field
        self._has_failed = False

    def prepare(self, request: Any) -> Hinted | None:
        """Return a request with hints, None if it is to be sent as it is."""
        try:
            return self._prepare(request)
        except Exception:
            self._note_failure("a request is sent without hints")
            return None

    def is_refusal(self, response: Any) -> bool:
        """Return whether a status may mean that a server does not take hints: read its body."""
        return response.status_code in _REFUSED

    def refuses(self, hinted: Hinted, body: bytes) -> bool:
        """Return whether a server has refused a request for its hints; it gets no more of them."""
        if FIELD.encode() not in body:
            return False
        host = _host(hinted.request)
        self._refusing.add(host)
        logger.warning("%s does not accept the field %s; it is not sent any more", host, FIELD)
        return True

    def note_answer(self, hinted: Hinted, response: Any) -> None:
        """Remember to tell a server of this project when the run of a request ends."""
        try:
            self._note_answer(hinted, response)
        except Exception:
            self._note_failure("a server is not told of the end of a run")

    def _note_failure(self, what: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning("%s; further errors of hints are not logged", what, exc_info=True)

    def _note_answer(self, hinted: Hinted, response: Any) -> None:
        run = hinted.call.run
        if run is None or _STATUS_HEADER not in response.headers:
            return
        url = str(hinted.request.url.copy_with(query=None)).rstrip("/")
        url = f"{url.removesuffix(hinted.route)}/workflows/{quote(run.id, safe='')}/advance"
        headers = {
            name: hinted.request.headers[name]
            for name in _AUTHORIZATION
            if name in hinted.request.headers
        }
        run.at_end((self, url), lambda keeps: self._ends.put(url, headers, keeps_sessions=keeps))

    def _prepare(self, request: Any) -> Hinted | None:
        route = route_of(request.url.path)
        if request.method != "POST" or route is None or _host(request) in self._refusing:
            return None
        if "json" not in request.headers.get("content-type", ""):
            return None
        if "content-encoding" in request.headers:
            return None
        call = self._callers.current()
        if call is None:
            return None
        try:
            content = request.content
        except RuntimeError:
            return None  # a stream of bytes that was not read
        body = read_body(content)
        hints = hints_of(call)
        if body is None or not hints:
            return None
        session = self._session_of(call, body)
        if session is not None:
            hints["session_id"] = session
            if call.run is not None and call.outlives_run:
                call.run.keep_sessions()
        graph = None
        if call.run is not None and call.agent is not None:
            graph = call.run.graph_json(call.agent, self._callers.graph_of)
        headers = [
            (name, value)
            for name, value in request.headers.multi_items()
            if name.lower() != "content-length"
        ]
        hinted = type(request)(
            request.method,
            request.url,
            headers=headers,
            content=with_hints(content, hints, graph),
            extensions=request.extensions,
        )
        if call.on_sent is not None:
            call.on_sent()
        return Hinted(hinted, call, route)

    def _session_of(self, call: Call, body: Mapping[str, Any]) -> str | None:
        if call.session is not None or call.agent is None or call.conversation is None:
            return call.session
        return self._conversations.session_of(call.conversation, call.agent, body)


def _host(request: Any) -> str:
    return f"{request.url.host}:{request.url.port}"
