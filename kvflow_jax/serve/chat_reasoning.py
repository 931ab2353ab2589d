"""The reasoning of one chat: in its prompt, in its history, and in its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvflow_jax.reasoning.history import fields_read, with_history
from kvflow_jax.reasoning.syntax import ReasoningMarkup, ReasoningSyntax, find_syntax
from kvflow_jax.serve.protocols import Tokenizer

# Of the end of a prompt: more than a tag and white space, however they are tokenized.
_NUM_TAIL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ModelReasoning:
    """How the served model reasons, and how it is shown what it reasoned before.

    Attributes:
        syntax: None: it does not, or its reasoning stays in its answers.
        history_fields: fields of messages from which its chat template reads earlier reasoning.
    """

    syntax: ReasoningSyntax | None = None
    history_fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, syntax_name: str) -> ModelReasoning:
        """Return what the model's chat template says.

        Args:
            syntax_name: of the reasoning syntax, "auto" or "none".
        """
        template = None if tokenizer is None else tokenizer.chat_template
        return cls(find_syntax(template, syntax_name), fields_read(template))

    def with_history(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with their reasoning where the chat template reads it, if it does."""
        return with_history(messages, self.history_fields)

    def markup(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        *,
        begun: str = "",
        is_included: bool = True,
    ) -> ReasoningMarkup | None:
        """Return where the reasoning is in an answer to a prompt; None if it has none.

        Args:
            begun: the text of the answer with which the prompt ends, to be continued.
            is_included: the client wants its text.
        """
        if self.syntax is None or tokenizer is None:
            return None
        tail = tokenizer.decode(prompt_ids[-_NUM_TAIL_TOKENS:], skip_special_tokens=False)
        markup = self.syntax.markup_behind(tail, begun)
        return None if markup is None else replace(markup, is_dropped=not is_included)
