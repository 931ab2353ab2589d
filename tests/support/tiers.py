"""Which cases of a parametrised test are part of ``make test``, and which of ``make test-slow``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the cases of a test, those that are not in ``fast`` marked as slow.

    Raises:
        ValueError: a fast case is not among the cases.
    """
    every = list(cases)
    if unknown := [case for case in fast if case not in every]:
        raise ValueError(f"{unknown} are not among the cases")
    return [
        case
        if case in fast
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in every
    ]
