"""How much of a prompt an agent's calls have in common, where its caller or its form says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvflow_jax.errors import InvalidRequestError

_SYSTEM_ROLES = ("system", "developer")


class ChatTemplate(Protocol):
    """What writes messages as tokens: a tokenizer."""

    def apply_chat_template(self, messages: Any, **kw: Any) -> list[int]: ...


def chat_prefix_len(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[int],
    num_messages: int | None = None,
    **template_args: Any,
) -> int | None:
    """Tokens of a chat's prompt up to the end of its first messages.

    The template writes those messages alone, and what the two have in common is counted: a token
    that spans the border differs, and so does what the template puts behind the last message.

    Args:
        messages: of the whole chat, which the template wrote as ``prompt_ids``.
        num_messages: how many of them; None: the system messages at the start.
        template_args: with which the prompt was written.

    Returns:
        None where there is no system message, or where the template does not write those messages
        alone. The engine then learns the prefix from call to call.
    """
    if num_messages is None:
        num_messages = _num_system(messages)
        if not num_messages:
            return None
    if not num_messages:
        return 0
    try:
        alone = template.apply_chat_template(
            messages[:num_messages], add_generation_prompt=False, **template_args
        )
    except InvalidRequestError:
        return None
    pairs = enumerate(zip(alone, prompt_ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(alone), len(prompt_ids)))


def _num_system(messages: Sequence[Mapping[str, Any]]) -> int:
    for i, message in enumerate(messages):
        if message.get("role") not in _SYSTEM_ROLES:
            return i
    return len(messages)
