from __future__ import annotations

import pytest

from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.generation import Usage
from kvflow_jax.serve.responses.response import ResponseObject
from kvflow_jax.serve.responses.schema import ResponsesRequest

USAGE = Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=2)


def response_of(**fields: object) -> ResponseObject:
    return ResponseObject("m", ResponsesRequest(input="hi", **fields), SamplingParams(top_p=0.5))


def test_what_a_request_asks_for_is_echoed() -> None:
    echoed = response_of(instructions="Plan.", metadata={"a": "b"}, store=True).in_progress()
    assert echoed["instructions"] == "Plan."
    assert echoed["metadata"] == {"a": "b"}
    assert echoed["top_p"] == 0.5
    assert echoed["text"] == {"format": {"type": "text"}}
    assert echoed["store"] is False


@pytest.mark.parametrize(("is_cut", "status"), [(False, "completed"), (True, "incomplete")])
def test_a_response_that_ended_has_its_usage(is_cut: bool, status: str) -> None:
    body = response_of().ended(USAGE, is_cut=is_cut)
    assert body["status"] == status
    assert body["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert body["usage"]["total_tokens"] == 7


def test_a_response_that_failed_has_its_error() -> None:
    body = response_of().failed(ApiError(503, "why", code="engine_dead"))
    assert body["status"] == "failed"
    assert body["error"] == {"code": "engine_dead", "message": "why"}
