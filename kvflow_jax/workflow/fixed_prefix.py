"""The fixed prefix of a chat: the messages that all calls of an agent have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from kvflow_jax.errors import InvalidRequestError

_SYSTEM_ROLES = ("system", "developer")


class ChatTemplate(Protocol):
    """A tokenizer with a chat template."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        **template_args: object,
    ) -> list[int]: ...


def chat_prefix_len(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, object]],
    prompt_ids: Sequence[int],
    num_messages: int | None = None,
    template_args: Mapping[str, object] = MappingProxyType({}),
) -> int | None:
    """Return the length in tokens of the part of a chat's prompt that its first messages fill.

    The template is applied to those messages alone, and the common prefix of both token lists is
    measured: this leaves out a token that spans the boundary, and tokens that the template adds
    behind the last message.

    Args:
        messages: of the whole chat.
        prompt_ids: tokens of the whole chat, as the template wrote them.
        num_messages: number of first messages; None: the leading system messages.
        template_args: arguments with which the template wrote ``prompt_ids``. Clients choose their
            names, so they are one argument, and none of this function's.

    Returns:
        None if there is no system message, or if the template refuses those messages alone. The
        engine then learns the prefix from successive calls.
    """
    if num_messages is None:
        num_messages = _num_system(messages)
        if not num_messages:
            return None
    if not num_messages:
        return 0
    try:
        prefix_ids = template.apply_chat_template(
            messages[:num_messages], add_generation_prompt=False, **template_args
        )
    except InvalidRequestError:
        return None
    return _common_len(prefix_ids, prompt_ids)


def _common_len(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix. Comparing slices is faster than comparing items."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _num_system(messages: Sequence[Mapping[str, object]]) -> int:
    for i, message in enumerate(messages):
        if message.get("role") not in _SYSTEM_ROLES:
            return i
    return len(messages)
