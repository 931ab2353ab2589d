from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.reasoning_fields import ReasoningFields


@pytest.mark.parametrize(
    ("fields", "effort", "is_enabled", "is_included"),
    [
        ({}, None, None, True),
        ({"reasoning_effort": "high", "include_reasoning": None}, "high", None, True),
        ({"reasoning_effort": "none"}, "none", False, True),
        ({"include_reasoning": False}, None, None, False),
        ({"enable_thinking": False}, None, False, True),
        ({"enable_thinking": True}, None, True, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None, True, True),
        ({"thinking": {"type": "disabled"}}, None, False, True),
        ({"thinking": {"type": "adaptive"}}, None, None, True),
        ({"thinking": True}, None, True, True),
        ({"think": "low"}, "low", None, True),
        ({"think": False}, None, False, True),
        ({"reasoning": {"effort": "low", "exclude": True}}, "low", None, False),
        ({"reasoning": {"enabled": False}}, None, False, True),
        # To turn it off wins.
        ({"reasoning_effort": "none", "enable_thinking": True}, "none", False, True),
    ],
    ids=str,
)
def test_fields_of_all_servers_are_read(
    fields: dict[str, Any], effort: str | None, is_enabled: bool | None, is_included: bool
) -> None:
    assert ReasoningFields.of(fields) == ReasoningFields(effort, is_enabled, is_included)


def test_the_template_gets_the_variables_that_models_know() -> None:
    assert ReasoningFields().template_kwargs == {}
    assert ReasoningFields("low").template_kwargs == {"reasoning_effort": "low"}
    switches = {"enable_thinking": False, "thinking": False}
    assert ReasoningFields(is_enabled=False).template_kwargs == switches


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"include_reasoning": "no"}, "include_reasoning"),
        ({"enable_thinking": 0}, "enable_thinking"),
        ({"thinking": "on"}, "thinking"),
        ({"think": 1}, "think"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": {}}}, "reasoning.effort"),
        ({"reasoning": {"exclude": "yes"}}, "reasoning.exclude"),
    ],
    ids=str,
)
def test_a_field_of_a_wrong_type_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=param) as raised:
        ReasoningFields.of(fields)
    assert raised.value.param == param
