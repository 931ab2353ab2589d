"""Errors can be caught by one base class, and carry what an HTTP answer needs."""

import inspect

import pytest

from kvflow_jax import errors
from kvflow_jax.errors import InvalidRequestError, KVFlowError, QueueFullError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
FACTS = {errors.ContextLengthError: (9000, 8191)}  # what a class has to be told beside the message


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_as_a_kvflow_error_with_its_message(kind):
    with pytest.raises(KVFlowError, match="what to do"):
        raise kind("what to do", *FACTS.get(kind, ()))


@pytest.mark.parametrize("kind", [InvalidRequestError, errors.ConfigError])
def test_bad_arguments_are_value_errors_too(kind):
    assert issubclass(kind, ValueError)


def test_an_invalid_request_names_its_field_and_a_code():
    error = InvalidRequestError("too long", "prompt", "context_length_exceeded")
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert (InvalidRequestError("?").param, InvalidRequestError("?").code) == (None, None)


def test_a_full_queue_tells_when_to_retry():
    assert QueueFullError("8 requests wait").retry_after_s == 1
    assert QueueFullError("8 requests wait", retry_after_s=3).retry_after_s == 3
