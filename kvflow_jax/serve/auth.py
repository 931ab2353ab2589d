"""API keys: who may ask, and whose cache a request may share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import Request

from kvflow_jax.serve.errors import ApiError


class KeyRing:
    """The server's API keys; without keys everybody may ask.

    Keys are held and compared as SHA-256 digests, all of them each time, so that timing tells
    neither length, prefix nor which key matched.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def authenticate(self, authorization: bytes | None) -> str:
        """Tenant of a request: a stable id per key with several keys, else the empty string.

        Args:
            authorization: the raw ``Authorization`` header.

        Raises:
            ApiError: 401, no key or a wrong one.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise _unauthorized("an API key is required: send 'Authorization: Bearer <key>'")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise _unauthorized("wrong API key")
        return given.hex()[:16] if len(self._digests) > 1 else ""


def cache_salt(tenant: str, request_salt: str | None) -> str:
    """Salt of the index's root: requests share cached blocks only under equal salts."""
    salt = request_salt or ""
    return f"{tenant}:{salt}" if tenant else salt  # tenants are of one length: unambiguous


def fairness_key_of(request: Request, tenant: str, user: str | None) -> str:
    """Whose turn a request takes: the key's or the host's, and within it the user's."""
    host = request.client.host if request.client is not None else ""
    return f"{tenant or host}:{user or ''}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
