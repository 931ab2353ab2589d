"""What a chat asks of reasoning, under the field names of all servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvflow_jax.errors import InvalidRequestError

# Variables by which chat templates turn thinking on and off. One that a template does not know
# does nothing.
_SWITCHES = ("enable_thinking", "thinking")
_THINKING_TYPES = {"enabled": True, "disabled": False}


@dataclass(frozen=True, slots=True)
class ReasoningFields:
    """How much a model is to reason, and whether its client wants to see it.

    Attributes:
        effort: such as "low" or "high", what the chat template reads.
        is_enabled: whether the model reasons; None: as its chat template has it.
        is_included: the answer has the text of the reasoning.
    """

    effort: str | None = None
    is_enabled: bool | None = None
    is_included: bool = True

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ReasoningFields:
        """Read a body. An effort of "none", and any field that says so, turns reasoning off.

        ``reasoning_effort`` is OpenAI's, ``include_reasoning`` vLLM's, ``enable_thinking``
        Qwen's, ``thinking`` Anthropic's and DeepSeek's, ``reasoning`` OpenRouter's, and ``think``
        Ollama's.

        Raises:
            InvalidRequestError: names the field that has a wrong type.
        """
        thinking = _read(fields, "thinking", dict, bool)
        if isinstance(thinking, dict):
            thinking = _THINKING_TYPES.get(str(thinking.get("type")))
        think = _read(fields, "think", bool, str)
        reasoning = _read(fields, "reasoning", dict) or {}
        efforts = (
            _read(fields, "reasoning_effort", str),
            _read(reasoning, "effort", str, within="reasoning."),
            think if isinstance(think, str) else None,
        )
        effort = next((one for one in efforts if one is not None), None)
        switches = (
            False if effort == "none" else None,
            thinking,
            think if isinstance(think, bool) else None,
            _read(fields, "enable_thinking", bool),
            _read(reasoning, "enabled", bool, within="reasoning."),
        )
        is_enabled = None
        if any(one is not None for one in switches):
            is_enabled = all(one is not False for one in switches)
        is_included = _read(fields, "include_reasoning", bool) is not False
        is_excluded = _read(reasoning, "exclude", bool, within="reasoning.") is True
        return cls(effort, is_enabled, is_included and not is_excluded)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The variables of a chat template that say so."""
        kwargs: dict[str, Any] = {} if self.effort is None else {"reasoning_effort": self.effort}
        if self.is_enabled is not None:
            kwargs |= dict.fromkeys(_SWITCHES, self.is_enabled)
        return kwargs


_TYPE_NAMES = {dict: "an object", bool: "true or false", str: "a string"}


def _read(fields: Mapping[str, Any], name: str, *types: type, within: str = "") -> Any:
    """Return a field; None if it is absent."""
    value = fields.get(name)
    if value is not None and not isinstance(value, types):
        expected = " or ".join(_TYPE_NAMES[one] for one in types)
        raise InvalidRequestError(f"{within}{name} must be {expected}", f"{within}{name}")
    return value
