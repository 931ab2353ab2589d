"""Names of agents, runs and conversations, as the server accepts them."""

from __future__ import annotations

import hashlib

from kvflow_jax.workflow.workflow import MAX_ID_LEN

_DIGEST_LEN = 16  # hexadecimal digits


def short_name(name: object) -> str:
    """Return a name as text of 1 to ``MAX_ID_LEN`` characters.

    A longer one keeps its beginning and ends in a digest of the whole, so that equal names stay
    equal and others stay apart. Halves of characters beyond 16 bits become U+FFFD.
    """
    text = str(name).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if len(text) <= MAX_ID_LEN:
        return text or "unnamed"
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LEN]
    return f"{text[: MAX_ID_LEN - _DIGEST_LEN - 1]}~{digest}"
