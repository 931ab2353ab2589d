"""Requests of web pages: which pages, and under which names, may call the server.

A browser sends some requests of any page without asking the server first (no CORS preflight): POSTs
without a body, or with a body of text. And a page whose name is made to point to this server (DNS
rebinding) is of the same origin, so that it may read answers, too.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError

MAX_HOST_BYTES = 255  # of a name in DNS
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # CORS guards what they return


class WebPageMiddleware:
    """Refuse requests under names that are not the server's, and those of foreign web pages."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._origins = frozenset(config.allowed_origins)
        self._names = frozenset(
            name.lower() for name in ("localhost", config.host, *config.allowed_hosts)
        )
        # On a network the server has names that it does not know.
        self._accepts_any_name = "*" in config.allowed_hosts or (
            not config.allowed_hosts and not is_loopback(config.host)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    return ApiError(400, "the request has several Host headers")
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        # Only clients of HTTP/1.0, which are no browsers, send none.
        is_own_name = host is None or self._is_own_name(host)
        if not is_own_name and not self._accepts_any_name:
            return ApiError(
                403,
                f"this server is not called {_shown(host)}; see --allowed-hosts",
                code="host_refused",
            )
        if scope["method"] in _SAFE_METHODS:
            return None
        if origin is None:
            # Browsers that hide the origin of a page say that it is another.
            page = "other sites" if site in (b"cross-site", b"same-site") else None
        else:
            is_same = is_own_name and origin.partition(b"://")[2].lower() == (host or b"").lower()
            page = None if is_same or self._is_allowed(origin) else _shown(origin)
        if page is None or "*" in self._origins:
            return None
        return ApiError(
            403, f"pages of {page} may not call this server; see --allowed-origins",
            code="origin_refused",
        )  # fmt: skip

    def _is_allowed(self, origin: bytes) -> bool:
        return origin.decode("latin-1") in self._origins

    def _is_own_name(self, host: bytes) -> bool:
        name = _name_of(host) if len(host) <= MAX_HOST_BYTES else ""
        return name in self._names or _is_address(name)


def is_loopback(host: str) -> bool:
    """Return whether only processes of this machine reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name_of(host: bytes) -> str:
    """Return the name in a Host header, without its port and the brackets of IPv6."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


@lru_cache(maxsize=1024)
def _is_address(name: str) -> bool:
    """Return whether a name is an IP address, which no page can make point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(value: bytes | None) -> str:
    return f"{(value or b'').decode('latin-1')!r:.80}"
