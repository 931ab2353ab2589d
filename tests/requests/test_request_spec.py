"""What a caller asks for: types are checked where it is made, and it cannot change."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.request_spec import RequestSpec, as_token_ids
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "text", "a flat list of integer token ids"),
        ("params", {"temperature": 0.0}, "must be SamplingParams, got {'temperature': 0.0}"),
        ("params", None, "must be SamplingParams, got None"),
        ("salt", 5, "must be a string, got 5"),
        ("salt", None, "must be a string, got None"),
        ("tenant", b"key", "must be a string, got b'key'"),
        ("user", b"key", "must be a string, got b'key'"),
        ("priority", "high", "must be an integer, got 'high'"),
        ("priority", True, "must be an integer, got True"),
        ("priority", 1.0, "must be an integer, got 1.0"),
        ("rank", None, "must be an integer, got None"),
        ("hints", {"agent_id": "planner"}, "must be Hints, got {'agent_id': 'planner'}"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(field, value, message):
    with pytest.raises(InvalidRequestError, match=message) as raised:
        RequestSpec(**{"prompt": [1], field: value})
    assert raised.value.param == field


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(InvalidRequestError) as raised:
        RequestSpec([1], salt=["x" * 10_000])
    assert len(str(raised.value)) < 200


def test_a_change_of_the_callers_prompt_does_not_change_the_request():
    prompt = np.array([1, 2], np.int32)
    spec = RequestSpec(prompt)
    prompt[0] = 9
    assert spec.prompt_ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        spec.prompt_ids[0] = 9
    with pytest.raises(FrozenInstanceError):
        spec.priority = 1


def test_requests_of_one_prompt_share_its_token_ids():
    first = RequestSpec([1, 2])
    second = replace(first, prompt=first.prompt_ids, params=SamplingParams(seed=1))
    assert second.prompt_ids is first.prompt_ids


def test_agents_belong_to_the_tenant_that_hints_name_or_else_the_requests():
    assert RequestSpec([1], tenant="key").agents_tenant == "key"
    assert RequestSpec([1], tenant="key", hints=Hints()).agents_tenant == "key"
    assert RequestSpec([1], tenant="key", hints=Hints(tenant="")).agents_tenant == ""


@pytest.mark.parametrize(
    "prompt", [[[1, 2]], [1.5], ["a"], [[1], [2, 3]], [-1], [2**31], "text", [True], 5, None]
)
def test_prompts_that_are_no_flat_list_of_token_ids_are_refused(prompt):
    with pytest.raises(InvalidRequestError) as raised:
        as_token_ids(prompt)
    assert raised.value.param == "prompt"


@pytest.mark.parametrize("token_id", [-1, 100, 2**31, 2**63, 2**70, -(2**70)])
def test_the_bound_of_token_ids_is_that_of_the_model(token_id: int):
    with pytest.raises(InvalidRequestError, match=r"between 0 and 99\b"):
        as_token_ids([1, token_id, -2], vocab_size=100)


def test_token_ids_may_be_of_any_integer_type():
    for prompt in ([1, 2**31 - 1], np.array([1, 2**31 - 1], np.uint64), (1, 2**31 - 1)):
        ids = as_token_ids(prompt)
        assert (ids.dtype, ids.tolist()) == (np.int32, [1, 2**31 - 1])
    assert as_token_ids([]).shape == (0,)
