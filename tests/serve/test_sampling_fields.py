"""Each sampling parameter is a field of both routes, by its definition."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax.requests.param import (
    Flag,
    Integer,
    Number,
    Strings,
    StructuredOutputs,
    TokenBias,
    TokenIds,
)
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams
from kvflow_jax.serve.sampling_fields import sampling_values
from kvflow_jax.serve.schemas import ChatRequest, CompletionRequest
from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import CHAT, HELLO, error_of

ROUTES = {CHAT: {"messages": HELLO}, "/v1/completions": {"prompt": "hi"}}
# A value of a type that no kind of parameter accepts, and one that its kind does.
WRONG = {"deep": [None]}
RIGHT = {
    Integer: 1,
    Number: 0.5,
    Flag: True,
    Strings: "END",
    TokenIds: [5],
    TokenBias: {"5": 1.0},
    StructuredOutputs: {"regex": "a"},
}
FIELDS = [param.http_name or name for name, param in PARAMS.items()]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("field", [*FIELDS, "n", "priority", "user", "cache_salt", "stream"])
def test_a_field_of_a_wrong_type_is_named_and_the_server_serves_on(
    http: httpx.Client, engine: FakeEngine, route: str, field: str
) -> None:
    error = error_of(http.post(route, json={**ROUTES[route], field: WRONG}), 400)
    assert error["param"].split(".")[0] == field
    assert not engine.requests
    assert http.post(route, json=ROUTES[route]).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("name", "field"),
    [pair for pair in zip(PARAMS, FIELDS, strict=True) if "logprobs" not in pair[0]],
)
def test_a_field_sets_its_parameter_and_no_other(
    http: httpx.Client, engine: FakeEngine, route: str, name: str, field: str
) -> None:
    http.post(route, json=ROUTES[route]).raise_for_status()
    default = engine.last.params
    value = RIGHT[type(PARAMS[name])]
    http.post(route, json={**ROUTES[route], field: value}).raise_for_status()
    changed = engine.last.params
    kept = SamplingParams(**{name: {5: 1.0} if name == "logit_bias" else value})
    for other in PARAMS:
        expected = kept if other == name else default
        assert getattr(changed, other) == getattr(expected, other)


def test_a_number_that_means_the_default_elsewhere_means_it_here() -> None:
    assert sampling_values(ChatRequest(messages=HELLO, top_k=-1)) == {"top_k": 0}
    assert sampling_values(CompletionRequest(prompt="a", top_k=0, stop="")) == {
        "top_k": 0,
        "stop": "",
    }


def test_a_route_keeps_the_fields_that_it_declares() -> None:
    assert ChatRequest.model_fields["logprobs"].annotation == bool | None
    assert "boolean" not in str(CompletionRequest.model_json_schema()["properties"]["logprobs"])


@pytest.mark.parametrize("bias", [{"x": 1.0}, {"-5": 1.0}, {"5" * 11: 1.0}, {"\u0665": 1.0}])
def test_keys_of_a_bias_are_token_ids(http: httpx.Client, bias: dict[str, Any]) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, "logit_bias": bias})
    error = error_of(answer, 400)
    assert error["param"] == "logit_bias"
    assert "must be token ids" in error["message"]


DEFAULTS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_tokens": 40}


@pytest.mark.parametrize("route", ROUTES)
def test_the_models_defaults_fill_the_fields_that_a_request_leaves_out(
    live: LiveServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(live.server.service, "sampling_defaults", DEFAULTS)

    def params(**fields: Any) -> SamplingParams:
        http.post(route, json={**ROUTES[route], **fields}).raise_for_status()
        return live.engine.last.params

    default = params()
    assert (default.temperature, default.top_k, default.top_p) == (0.6, 20, 0.95)
    assert default.max_tokens == (40 if route == CHAT else 16)  # OpenAI's, of a completion
    assert params(temperature=None) == default  # null is absent
    given = params(temperature=1.0, top_k=-1, top_p=1.0, max_tokens=7)
    assert (given.temperature, given.top_k, given.top_p, given.max_tokens) == (1.0, 0, 1.0, 7)
    assert params(top_k=0).top_k == 0
    assert params(max_tokens=100).max_tokens == 40  # of the model, it bounds every request
    assert params(temperature=0).is_greedy


@pytest.mark.parametrize("route", ROUTES)
def test_without_defaults_of_the_model_sampling_is_neutral(
    http: httpx.Client, engine: FakeEngine, route: str
) -> None:
    http.post(route, json={**ROUTES[route], "max_tokens": 5}).raise_for_status()
    assert engine.last.params == SamplingParams(max_tokens=5)
