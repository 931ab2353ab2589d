"""Errors can be caught by one base class, and carry what an HTTP answer needs."""

import inspect

import pytest

from kvflow_jax import errors
from kvflow_jax.errors import InvalidRequestError, KVFlowError, QueueFullError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
CLASSES.remove(errors.ContextLengthError)  # which writes its message itself


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_as_a_kvflow_error_with_its_message(kind):
    with pytest.raises(KVFlowError, match="what to do"):
        raise kind("what to do")


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


def test_a_prompt_that_is_too_long_is_told_in_words_that_clients_know():
    error = errors.ContextLengthError(8192, 8192)
    # LiteLLM looks for this phrase.
    assert "This model's maximum context length is 8192 tokens" in str(error)
    assert "requested 8193 tokens (8192 in the prompt" in str(error)
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")
    assert (error.num_tokens, error.max_tokens) == (8192, 8191)
    assert "at least 9001 tokens" in str(errors.ContextLengthError(9000, 8192, is_exact=False))
