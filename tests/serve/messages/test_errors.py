from __future__ import annotations

import json

import pytest

from kvflow_jax.errors import ContextLengthError
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.messages.errors import error_response, prompt_too_long


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_a_status_has_anthropics_type(status: int, kind: str) -> None:
    answer = error_response(ApiError(status, "why", headers={"Retry-After": "1"}))
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "1"
    body = {"type": "error", "error": {"type": kind, "message": "why"}}
    assert json.loads(answer.body) == body


def test_a_prompt_that_is_too_long_has_both_numbers() -> None:
    error = prompt_too_long(ContextLengthError(9, 8))
    assert error.message == "prompt is too long: 9 tokens > 7 maximum"
    assert error.status == 400
