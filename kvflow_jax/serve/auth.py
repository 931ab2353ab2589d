"""Authentication by API key, and the cache salt and fairness key derived from it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import Request

from kvflow_jax.serve.errors import ApiError


class KeyRing:
    """The server's API keys; without keys every request is accepted.

    Stores SHA-256 digests of the keys and compares each of them with every request's key, so that
    timing reveals neither the length, nor a prefix, nor which key matched.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def authenticate(self, authorization: bytes | None, api_key: bytes | None = None) -> str:
        """Return the tenant of a request: a stable id per key if there are several, else "".

        Args:
            authorization: the raw ``Authorization`` header.
            api_key: the raw ``x-api-key`` header, by which Anthropic's clients send the key.

        Raises:
            ApiError: 401, if the key is missing or wrong; 400, if the headers differ.
        """
        if not self._digests:
            return ""
        keys = {key for key in (_bearer_key(authorization), (api_key or b"").strip()) if key}
        if not keys:
            raise _unauthorized(
                "an API key is required: send 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
            )
        if len(keys) > 1:
            raise ApiError(
                400,
                "the Authorization and x-api-key headers have different keys; send one of them",
                code="ambiguous_api_key",
            )
        request_digest = _digest(keys.pop())
        matches = [hmac.compare_digest(request_digest, digest) for digest in self._digests]
        if not any(matches):
            raise _unauthorized("invalid API key")
        return request_digest.hex()[:16] if len(self._digests) > 1 else ""


def cache_salt(tenant: str, request_salt: str | None) -> str:
    """Return the salt of the index root; requests share cached blocks only if their salts match."""
    salt = request_salt or ""
    # Unambiguous, because all tenant ids have the same length.
    return f"{tenant}:{salt}" if tenant else salt


def fairness_key_of(request: Request, tenant: str, user: str | None) -> str:
    """Return the key of fair queueing: the tenant, else the client's host, with the user."""
    host = request.client.host if request.client is not None else ""
    return f"{tenant or host}:{user or ''}"


def _bearer_key(authorization: bytes | None) -> bytes:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
