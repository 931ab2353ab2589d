"""Authentication: from the headers and the peer of a request to its tenant, and its cache salt."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.tenant_limits import ADMIN_LIMITS, DEFAULT_LIMITS, TenantLimits

LOCAL = ""  # the tenant of this machine's own clients, where no key is required


@dataclass(frozen=True)
class ApiKey:
    """One API key: the SHA-256 digest of its text, and whose it is.

    Several keys may name one tenant, so that a key can be replaced while both are valid.
    """

    digest: bytes
    tenant: str
    limits: TenantLimits = DEFAULT_LIMITS

    @classmethod
    def of(cls, text: str, limits: TenantLimits = DEFAULT_LIMITS) -> ApiKey:
        """Return the key of a flag, a tenant of its own that is named by its digest."""
        digest = digest_of(text.encode())
        return cls(digest, digest.hex()[:16], limits)


class KeyRing:
    """The server's API keys, found by their digests, so that timing reveals nothing of a key.

    Args:
        is_required: whether requests must have a key; if not, a request without one belongs to
            the tenant of its peer's address, and keys are those of admins.
    """

    def __init__(self, keys: Sequence[ApiKey] = (), *, is_required: bool = False) -> None:
        self.is_required = is_required
        self._keys = {key.digest: key for key in keys}
        self._limits = {key.tenant: key.limits for key in keys}

    def authenticate(
        self, authorization: bytes | None, api_key: bytes | None = None, peer: str | None = None
    ) -> str:
        """Return the tenant of a request: that of its key, or of its peer if no key is required.

        Args:
            authorization: the raw ``Authorization`` header.
            api_key: the raw ``x-api-key`` header, by which Anthropic's clients send the key.
            peer: the address of the client; None: it is on this machine.

        Raises:
            ApiError: 401, if the key is missing or wrong; 400, if the headers differ.
        """
        texts = {text for text in (_bearer_key(authorization), (api_key or b"").strip()) if text}
        if len(texts) > 1 and self.is_required:
            raise ApiError(
                400,
                "the Authorization and x-api-key headers have different keys; send one of them",
                code="ambiguous_api_key",
            )
        for text in texts:
            if (key := self._keys.get(digest_of(text))) is not None:
                return key.tenant
        if not self.is_required:
            return tenant_of_peer(peer)
        if texts:
            raise _unauthorized("invalid API key")
        raise _unauthorized(
            "an API key is required: send 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
        )

    def limits_of(self, tenant: str) -> TenantLimits:
        """Return the limits of a tenant that ``authenticate`` has returned."""
        if tenant == LOCAL and not self.is_required:
            return ADMIN_LIMITS
        return self._limits.get(tenant, DEFAULT_LIMITS)

    def cache_salt(self, tenant: str, request_salt: str | None) -> str:
        """Return the salt of the index root: requests share cached blocks only if it is the same.

        Where keys are required, each tenant has a salt of its own.
        """
        salt = request_salt or ""
        # Unambiguous, because no name of a tenant has a colon.
        return f"{tenant}:{salt}" if self.is_required else salt


def tenant_of_peer(peer: str | None) -> str:
    """Return the tenant of an address: ``LOCAL`` for this machine's, a /64 network for IPv6.

    One host of IPv6 has a whole network of that size.
    """
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:  # a Unix socket, or the client of a test
        return peer or LOCAL
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None and not address.is_loopback:
            return f"{ipaddress.IPv6Network((int(address) >> 64 << 64, 64))}"
        address = address.ipv4_mapped or address
    return LOCAL if address.is_loopback else str(address)


def digest_of(key: bytes) -> bytes:
    """Return the digest by which a key is known."""
    return hashlib.sha256(key).digest()


def _bearer_key(authorization: bytes | None) -> bytes:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
