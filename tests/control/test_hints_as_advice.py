"""Errors in hints are logged, and fail nothing."""

import logging

from kvflow_jax.control.hints_as_advice import hints_as_advice
from tests.support.plain_request import make_request


def test_an_error_is_logged_with_its_request(caplog):
    with caplog.at_level(logging.ERROR), hints_as_advice(make_request([1], 7)):
        raise ValueError("injected")
    assert "hints of request 7" in caplog.text
    assert "injected" in caplog.text
