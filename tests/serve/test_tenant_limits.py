from __future__ import annotations

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.tenant_limits import DEFAULT_LIMITS, TenantLimits


def test_fields_that_are_left_out_have_their_defaults() -> None:
    assert TenantLimits.of({}) == DEFAULT_LIMITS
    assert TenantLimits.of({"max_n": 4}) == TenantLimits(max_n=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_admin", 1),
        ("max_priority", "high"),
        ("max_priority", True),
        ("max_n", 0),
        ("max_pending", 1.5),
        ("max_graphs", -1),
        ("tokens_per_minute", True),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be"):
        TenantLimits.of({field: value})


def test_an_unknown_field_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'max_m'; known are .*max_n"):
        TenantLimits.of({"max_m": 1})
