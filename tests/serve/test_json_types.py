"""What JSON does not tell apart is read alike, on every route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import CHAT, HELLO, error_of

COMPLETIONS = "/v1/completions"
ROUTES: dict[str, tuple[dict[str, Any], str]] = {  # a body, and its field for the limit of tokens
    CHAT: ({"messages": HELLO}, "max_tokens"),
    COMPLETIONS: ({"prompt": "hi"}, "max_tokens"),
    "/v1/responses": ({"input": "hi"}, "max_output_tokens"),
    "/v1/messages": ({"messages": HELLO}, "max_tokens"),
}


@pytest.mark.parametrize("path", ROUTES)
def test_an_integer_may_be_written_with_a_point(
    http: httpx.Client, engine: FakeEngine, path: str
) -> None:
    body, limit = ROUTES[path]
    fields = {"seed": 7.0, "top_k": 5.0, "stop_token_ids": [3, 4.0], "priority": 1.0, limit: 4.0}
    http.post(path, json={**body, **fields}).raise_for_status()
    params = engine.last.params
    assert (params.seed, params.top_k, params.max_tokens) == (7, 5, 4)
    assert params.stop_token_ids == (3, 4)
    assert engine.last.spec.priority == 1


@pytest.mark.parametrize("prompt", [[72.0, 105], [[72, 105.0]]])
def test_token_ids_may_be_written_with_a_point(
    http: httpx.Client, engine: FakeEngine, prompt: Any
) -> None:
    http.post(COMPLETIONS, json={"prompt": prompt}).raise_for_status()
    assert engine.last.prompt_ids == [72, 105]


@pytest.mark.parametrize("value", [4.5, "4", True, [4]])
def test_what_is_no_integer_is_refused(http: httpx.Client, value: Any) -> None:
    for field in ("max_tokens", "seed", "n", "top_k"):
        error = error_of(http.post(CHAT, json={"messages": HELLO, field: value}), 400)
        assert error["param"] == field
    prompt = {"prompt": [5, value]}
    assert error_of(http.post(COMPLETIONS, json=prompt), 400)["param"] == "prompt"


@pytest.mark.parametrize("path", ROUTES)
def test_minus_one_is_no_limit_of_tokens(http: httpx.Client, engine: FakeEngine, path: str) -> None:
    body, limit = ROUTES[path]
    http.post(path, json={**body, limit: -1}).raise_for_status()
    assert engine.last.params.max_tokens is None
    assert http.post(path, json={**body, limit: -2}).status_code == 400


def test_either_name_of_the_limit_may_be_minus_one(http: httpx.Client, engine: FakeEngine) -> None:
    for fields in ({"max_completion_tokens": -1}, {"max_completion_tokens": -1, "max_tokens": 3}):
        http.post(CHAT, json={"messages": HELLO, **fields}).raise_for_status()
        assert engine.last.params.max_tokens is None


def test_a_seed_of_minus_one_is_none(http: httpx.Client, engine: FakeEngine) -> None:
    http.post(CHAT, json={"messages": HELLO, "seed": -1}).raise_for_status()
    assert engine.last.params.seed is None


def test_an_empty_list_is_an_empty_object(http: httpx.Client, engine: FakeEngine) -> None:
    fields: dict[str, Any] = {"logit_bias": [], "chat_template_kwargs": []}
    http.post(CHAT, json={"messages": HELLO, **fields}).raise_for_status()
    assert engine.last.params.logit_bias == {}
    error = error_of(http.post(CHAT, json={"messages": HELLO, "logit_bias": [1]}), 400)
    assert error["message"] == "logit_bias must be an object"


@pytest.mark.parametrize(("value", "num"), [(False, None), (True, 1), (2.0, 2), (None, None)])
def test_logprobs_of_a_completion_may_be_those_of_a_chat(
    http: httpx.Client, engine: FakeEngine, value: Any, num: int | None
) -> None:
    http.post(COMPLETIONS, json={"prompt": "hi", "logprobs": value}).raise_for_status()
    assert engine.last.params.logprobs == num
