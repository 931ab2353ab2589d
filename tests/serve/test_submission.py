from __future__ import annotations

import httpx
import pytest

from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import HELLO, PLANNER, SYSTEM_AND_USER, SYSTEM_PROMPT, error_of

BODIES = {
    "/v1/chat/completions": {"messages": SYSTEM_AND_USER},
    "/v1/responses": {"instructions": "You plan.", "input": "hi"},
    "/v1/messages": {"system": "You plan.", "messages": HELLO, "max_tokens": 8},
}


@pytest.mark.parametrize("path", BODIES)
def test_every_route_submits_the_same_chat(
    http: httpx.Client, engine: FakeEngine, path: str
) -> None:
    fields = {"agent_hints": PLANNER, "priority": 2, "cache_salt": "s", "user": "u", "seed": 7}
    answer = http.post(path, json={**BODIES[path], **fields})
    assert answer.status_code == 200, answer.text
    (request,) = engine.requests.values()
    assert request.prompt == f"{SYSTEM_PROMPT}<user>hi"
    assert request.params.seed == 7
    assert (request.spec.priority, request.spec.salt) == (2, "s")
    assert request.spec.user == "u"
    assert request.hints.agent_id == "planner"
    assert request.hints.num_fixed == len(SYSTEM_PROMPT)


@pytest.mark.parametrize("token_id", [-1, FakeEngine.vocab_size, 2**40])
@pytest.mark.parametrize("echo", [False, True])
def test_a_token_id_that_is_refused_is_told_the_models_bound(
    http: httpx.Client, token_id: int, echo: bool
) -> None:
    body = {"prompt": [5, token_id], "echo": echo}
    error = error_of(http.post("/v1/completions", json=body), 400)
    assert f"between 0 and {FakeEngine.vocab_size - 1}," in error["message"]
    assert error["param"] == "prompt"


@pytest.mark.parametrize(
    ("path", "body", "choices"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "n": 3}, [0, 1, 2]),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, [0, 1, 0, 1]),
    ],
)
def test_choices_of_one_prompt_are_told_from_calls(
    http: httpx.Client, engine: FakeEngine, path: str, body: dict[str, object], choices: list[int]
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert [request.spec.choice for request in engine.requests.values()] == choices
