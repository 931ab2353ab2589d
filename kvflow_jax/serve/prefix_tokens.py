"""Token ids of the beginnings of chats, which all calls of an agent share, kept between calls.

An agent's system text and tools are most of its prompt. Where they end in it is found by tokenizing
them alone, which takes as long as the prompt itself: 1 ms for some 400 tokens.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections.abc import Mapping, Sequence

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.serve.chat_tools import ToolTemplate

MAX_BYTES = 2 << 20  # of one tenant's token ids: some 500,000


class PrefixTokens:
    """Token ids by tenant and digest of what was tokenized, within a budget of bytes.

    Used by all tokenizer threads.

    Args:
        max_bytes: of one tenant's; the least recently used are dropped first.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._ids: TenantLru[bytes, array[int]] = TenantLru(max_bytes)

    @property
    def usage(self) -> Usage:
        return self._ids.usage

    def get(self, tenant: str, key: bytes) -> list[int] | None:
        with self._lock:
            ids = self._ids.use(tenant, key)
        return None if ids is None else ids.tolist()

    def put(self, tenant: str, key: bytes, token_ids: Sequence[int]) -> None:
        ids = array("i", token_ids)
        with self._lock:
            self._ids.put(tenant, key, ids, ids.itemsize * len(ids) + len(key))


class PrefixTemplate:
    """The template of a chat, which tokenizes what it has tokenized before only once.

    Args:
        tokens: what it has tokenized.
        tenant: whose chat it is.
    """

    def __init__(self, template: ToolTemplate, tokens: PrefixTokens, tenant: str) -> None:
        self._template, self._tokens, self._tenant = template, tokens, tenant

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        **template_args: object,
    ) -> list[int]:
        """Return the token ids of messages. Raises as ``ToolTemplate``."""
        # Some templates write the date.
        today, tools = time.strftime("%F"), self._template.definitions
        read = (messages, add_generation_prompt, template_args, tools, today)
        key = hashlib.blake2b(repr(read).encode(), digest_size=16).digest()
        ids = self._tokens.get(self._tenant, key)
        if ids is None:
            ids = self._template.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, **template_args
            )
            self._tokens.put(self._tenant, key, ids)
        return ids
