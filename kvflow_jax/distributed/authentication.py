"""Proof that both ends of a connection know the secret of their group, before any message.

    process 0                                      another process
        nonce  ────────────────────────────────────▶
               ◀──────────────  nonce, proof of FOLLOWER
        proof of LEADER  ──────────────────────────▶

A proof is the HMAC-SHA256 of both nonces and of the side that proves. What follows on the
connection is neither signed nor encrypted.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from kvflow_jax.distributed.connection import Connection
from kvflow_jax.errors import ConfigError

SECRET_VARIABLE = "KVFLOW_COORDINATOR_SECRET"  # of the environment
MIN_SECRET_BYTES = 16

_NONCE_BYTES = 32
_PROOF_BYTES = 32
_LEADER, _FOLLOWER = b"kvflow leader", b"kvflow follower"


class AuthenticationError(ValueError):
    """The other end does not know the secret."""


def read_secret(file: Path | None, environment: Mapping[str, str]) -> bytes:
    """Return the secret of a group: the content of a file, else of a variable; empty: none is set.

    Raises:
        ConfigError: the file cannot be read, or the secret is short.
    """
    if file is None:
        source, secret = SECRET_VARIABLE, environment.get(SECRET_VARIABLE, "").encode()
        if not secret:
            return b""
    else:
        source = f"--coordinator-secret-file {file}"
        try:
            secret = file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"{source} has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed: write one "
            "with, for example, openssl rand -hex 32"
        )
    return secret


def authenticate_follower(connection: Connection, secret: bytes, timeout_s: float) -> None:
    """Prove the secret to a process that has connected, and let it prove it first.

    Raises:
        AuthenticationError: it does not know the secret.
        OSError, EOFError: the connection is broken, or silent for ``timeout_s`` seconds.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.send_frame(nonce)
    answer = connection.receive_bytes(_NONCE_BYTES + _PROOF_BYTES, timeout_s)
    nonces = nonce + answer[:_NONCE_BYTES]
    if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(secret, _FOLLOWER, nonces)):
        raise AuthenticationError("it does not know the secret of this group")
    connection.send_frame(_proof(secret, _LEADER, nonces))


def authenticate_leader(connection: Connection, secret: bytes, timeout_s: float) -> None:
    """Prove the secret to process 0, and check its proof.

    Raises:
        AuthenticationError: process 0 does not know the secret.
        OSError, EOFError: the connection is broken, or silent for ``timeout_s`` seconds. Process 0
            closes it when it refuses the proof.
    """
    nonces = connection.receive_bytes(_NONCE_BYTES, timeout_s)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    nonces += nonce
    connection.send_frame(nonce + _proof(secret, _FOLLOWER, nonces))
    proof = connection.receive_bytes(_PROOF_BYTES, timeout_s)
    if not hmac.compare_digest(proof, _proof(secret, _LEADER, nonces)):
        raise AuthenticationError("process 0 does not know the secret of this group")


def _proof(secret: bytes, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, side + nonces, "sha256")
