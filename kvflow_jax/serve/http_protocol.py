"""HTTP/1.1 on one connection, with limits on what a client may send, and how slowly."""

from __future__ import annotations

import asyncio
import logging
import select
from enum import Enum
from functools import cache
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from kvflow_jax.serve.connections import ConnectionTable
from kvflow_jax.serve.errors import ApiError

logger = logging.getLogger("kvflow_jax.serve")

MAX_URL_BYTES = 8 << 10
MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS_BYTES = 64 << 10  # all of a request, with those behind a chunked body
MAX_NUM_HEADERS = 128
# More requests sent before the first one's answer are an attack: clients send one at a time.
MAX_PIPELINED = 8
MIN_BODY_BYTES_PER_S = 16 << 10
LINGER_S = 2  # for the client of a refused request to read why, while it sends
MAX_LINGER_BYTES = 1 << 20

_TLS_HELLO = b"\x16\x03"
# A client that has closed its side; only Linux reports it while nothing is read.
_HANG_UP = getattr(select, "POLLRDHUP", 0)


class Awaited(Enum):
    """The part of a request that the client has to send."""

    ANY = "any byte"  # of a new connection
    HEAD = "head"
    BODY = "body"


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, which has no limits of its own.

    What exceeds a limit gets a 4xx and the connection is closed; it is closed at once where an
    answer has begun. ``ConnectionTable.close_late`` calls ``close_if_late``.

    Args:
        table: where it is registered while it is open.
        others: the arguments of uvicorn's protocol.
    """

    def __init__(self, table: ConnectionTable, **others: Any) -> None:
        super().__init__(**others)
        self._table = table
        self._running: RequestResponseCycle | None = None  # the request that is being answered
        self._refusal: ApiError | None = None  # why a callback stopped the parser
        self._is_refused = False
        self._awaited: Awaited | None = Awaited.ANY
        self._since_s = self.loop.time()  # begin of what is awaited
        self._write_paused_s: float | None = None
        self._closing_s: float | None = None
        self._has_progress = False
        self._num_unparsed = 0  # bytes without an element of HTTP that has ended
        self._num_headers = self._headers_bytes = self._body_bytes = self._linger_bytes = 0

    # Of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if not self._table.add(self):
            self._write_error(
                ApiError(
                    503,
                    "the server has as many connections as --max-connections allows",
                    code="too_many_connections",
                    headers={"Retry-After": "1"},
                )
            )
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        # Uvicorn tells only the last of pipelined requests.
        self.pipeline.clear()
        self._disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_refused:
            self._linger_bytes += len(data)
            if self._linger_bytes > MAX_LINGER_BYTES:
                self.transport.abort()
            return
        if self._awaited is None or self._awaited is Awaited.ANY:
            self._await(Awaited.HEAD)
        self._has_progress = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered in HTTP/1.1; what follows is another protocol.
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            if data.startswith(_TLS_HELLO):
                _warn_of_tls()
            self._refuse(self._refusal or ApiError(400, f"this is not HTTP/1.1: {error}"))
            return
        self._num_unparsed = 0 if self._has_progress else self._num_unparsed + len(data)
        if self._num_unparsed > MAX_HEADER_BYTES:
            self._refuse(_too_large_header())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused_s = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused_s = None

    # Of the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_progress = True
        self._num_headers = self._headers_bytes = self._body_bytes = 0
        self._await(Awaited.HEAD)

    def on_url(self, url: bytes) -> None:
        self._has_progress = True
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(ApiError(414, f"the URL is longer than {MAX_URL_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_progress = True
        num_bytes = len(name) + len(value)
        self._num_headers += 1
        self._headers_bytes += num_bytes
        if num_bytes > MAX_HEADER_BYTES:
            self._stop(_too_large_header())
        if self._num_headers > MAX_NUM_HEADERS or self._headers_bytes > MAX_HEADERS_BYTES:
            self._stop(
                ApiError(
                    431,
                    f"the request has more than {MAX_NUM_HEADERS} headers, or headers of more than "
                    f"{MAX_HEADERS_BYTES} bytes",
                )
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_progress = True
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(ApiError(400, f"more than {MAX_PIPELINED} requests wait for their answers"))
        super().on_headers_complete()
        self._await(Awaited.BODY)

    def on_chunk_header(self) -> None:
        self._has_progress = True

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progress = True
        self._awaited = None
        self._table.set_served(self)
        super().on_message_complete()

    # Of the server.

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._table.set_waiting(self)
        super().on_response_complete()

    def make_room(self) -> None:
        if self._running is None or self._running.response_complete:
            self.transport.close()
        else:
            self.transport.abort()

    def close_if_late(self, now_s: float) -> None:
        timeout_s = self._table.timeout_s
        if self.transport.is_closing():
            # What is left of an answer is not read.
            self._closing_s = self._closing_s or now_s
            if now_s - self._closing_s > timeout_s:
                self.transport.abort()
        elif self._write_paused_s is not None and now_s - self._write_paused_s > timeout_s:
            self.transport.abort()
        elif self._is_refused:
            if now_s - self._since_s > LINGER_S:
                self.transport.close()
        elif self.flow.read_paused:
            if _has_hung_up(self.transport):
                self.transport.abort()
        elif self._awaited is not None:
            if self._awaited is Awaited.BODY:
                timeout_s += self._body_bytes / MIN_BODY_BYTES_PER_S
            if now_s - self._since_s > timeout_s:
                self._refuse_late(self._awaited)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _await(self, part: Awaited) -> None:
        self._awaited = part
        self._since_s = self.loop.time()

    def _stop(self, refusal: ApiError) -> None:
        """Stop the parser within one of its callbacks."""
        self._refusal = refusal
        raise ValueError(refusal.message)

    def _refuse_late(self, part: Awaited) -> None:
        if part is Awaited.ANY:
            self.transport.close()
            return
        message = f"the {part.value} of the request did not arrive in time"
        self._refuse(ApiError(408, message, code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer the request that is being received with an error, and close the connection."""
        logger.debug("refused a request: %s", error.message)
        self._is_refused = True
        self._since_s = self.loop.time()
        self.pipeline.clear()
        running = self._running
        is_answered = running is not None and running.response_complete
        if self._awaited is Awaited.BODY and is_answered and running is self.cycle:
            # The answer came before the end of the body.
            self.transport.close()
        elif running is not None and not is_answered and not self._may_replace(running):
            self.transport.abort()
        else:
            self._disconnect(running)
            self._write_error(error)
            self.transport.write_eof()

    def _may_replace(self, running: RequestResponseCycle) -> bool:
        """Return whether an error can be the answer to a request that the application has."""
        is_being_received = running is self.cycle and self._awaited is not Awaited.HEAD
        return is_being_received and not running.response_started

    def _disconnect(self, cycle: RequestResponseCycle | None) -> None:
        """Tell the application of a request that its client has disconnected."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _write_error(self, error: ApiError) -> None:
        response = error.response()
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(
            b"".join([STATUS_LINE[error.status], *lines, b"\r\n", bytes(response.body)])
        )


@cache
def _warn_of_tls() -> None:
    """Log once why the clients that speak HTTPS fail."""
    logger.warning("a client uses https://; the server speaks HTTP alone: put a proxy in front")


def _too_large_header() -> ApiError:
    return ApiError(431, f"a header is longer than {MAX_HEADER_BYTES} bytes")


def _has_hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the client has closed its connection, of which nothing is read now."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), _HANG_UP)
    return bool(poll.poll(0))
