"""The call syntaxes, one file each, and how one is found in a chat template."""

from __future__ import annotations

from kvflow_jax.tools.syntaxes.base import CallSyntax
from kvflow_jax.tools.syntaxes.gemma import GEMMA
from kvflow_jax.tools.syntaxes.hermes import HERMES
from kvflow_jax.tools.syntaxes.llama3_json import LLAMA3_JSON
from kvflow_jax.tools.syntaxes.mistral import MISTRAL
from kvflow_jax.tools.syntaxes.phi4_mini_json import PHI4_MINI_JSON
from kvflow_jax.tools.syntaxes.pythonic import PYTHONIC
from kvflow_jax.tools.syntaxes.qwen3_coder import QWEN3_CODER

AUTO = "auto"

# A template has the marks of several: the first one counts.
SYNTAXES: dict[str, CallSyntax] = {
    syntax.name: syntax
    for syntax in (
        QWEN3_CODER,
        HERMES,
        MISTRAL,
        PHI4_MINI_JSON,
        PYTHONIC,
        LLAMA3_JSON,
        GEMMA,
    )
}


def find_syntax(chat_template: str | None, name: str = AUTO) -> CallSyntax:
    """Return the call syntax of a chat template, or the one of this name.

    A template with no marks of any gets Hermes', which most models have seen.

    Args:
        name: one of ``SYNTAXES``, or ``AUTO``.
    """
    if name != AUTO:
        return SYNTAXES[name]
    for syntax in SYNTAXES.values():
        if any(all(mark in (chat_template or "") for mark in g) for g in syntax.template_marks):
            return syntax
    return HERMES
