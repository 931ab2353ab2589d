"""The tags in which model families reason, and how they are found in a chat template."""

from __future__ import annotations

from dataclasses import dataclass, field

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True)
class ReasoningMarkup:
    """Where the reasoning of one output is: at its start, up to the end tag.

    Attributes:
        begin: the tag that begins it.
        end: the tag that ends it.
        is_open: the output begins within it; a begin tag may still come first. False: an output
            that does not start with the begin tag has no reasoning.
        is_dropped: the client does not want the text of the reasoning.
    """

    begin: str
    end: str
    is_open: bool
    is_dropped: bool = field(default=False, compare=False)

    @property
    def tags(self) -> tuple[str, str]:
        """Both tags: those that are special tokens must be in the text that is split."""
        return self.begin, self.end


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    """How models of some families mark their reasoning.

    Attributes:
        name: the value of ``--reasoning-parser``; vLLM's where its parser reads the same.
        families: models that were trained on it, for the documentation.
        template_mark: a chat template that has this text is of a model that reasons in this
            syntax.
        begin: the tag that begins the reasoning.
        end: the tag that ends it.
        may_omit_begin: its models reason in every answer, and may leave out the begin tag.
    """

    name: str
    families: str
    template_mark: str
    begin: str
    end: str
    may_omit_begin: bool = False

    def markup_behind(self, prompt: str, answer: str = "") -> ReasoningMarkup | None:
        """Return where the reasoning of an output is; None if the prompt has ended it.

        A template opens the reasoning itself (QwQ), or ends an empty one where the client has
        turned it off (Qwen 3).

        Args:
            prompt: the end of the prompt, special tokens included.
            answer: the beginning of the answer, if the prompt ends with it.
        """
        if answer:
            is_within = self.begin in answer and self.end not in answer
            return ReasoningMarkup(self.begin, self.end, is_open=True) if is_within else None
        prompt = prompt.rstrip()
        if prompt.endswith(self.end):
            return None
        is_open = self.may_omit_begin or prompt.endswith(self.begin)
        return ReasoningMarkup(self.begin, self.end, is_open)


MISTRAL = ReasoningSyntax(
    name="mistral",
    families="Magistral",
    template_mark="[THINK]",
    begin="[THINK]",
    end="[/THINK]",
)
QWEN3 = ReasoningSyntax(
    name="qwen3",
    families="Qwen 3, QwQ, Phi-4-reasoning, R1 distillates whose template has <think>",
    template_mark="<think>",
    begin="<think>",
    end="</think>",
)
DEEPSEEK_R1 = ReasoningSyntax(
    name="deepseek_r1",
    families="R1 distillates whose template has </think> alone",
    # Its first template only takes the reasoning off earlier turns. Later ones write the begin tag.
    template_mark="</think>",
    begin="<think>",
    end="</think>",
    may_omit_begin=True,
)

# A template has the marks of several: the first one counts.
SYNTAXES: dict[str, ReasoningSyntax] = {
    syntax.name: syntax for syntax in (MISTRAL, QWEN3, DEEPSEEK_R1)
}


def find_syntax(chat_template: str | None, name: str = AUTO) -> ReasoningSyntax | None:
    """Return the reasoning syntax of a chat template, or the one of this name.

    None: the model does not reason, or its reasoning is to stay in its answers.

    Args:
        name: one of ``SYNTAXES``, ``AUTO`` or ``NONE``.
    """
    if name != AUTO:
        return SYNTAXES.get(name)
    for syntax in SYNTAXES.values():
        if syntax.template_mark in (chat_template or ""):
            return syntax
    return None
