from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.schemas import ChatRequest, CompletionRequest, check_supported
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import CHAT, HELLO, error_of


def test_sampling_parameters_reach_the_engine(http: httpx.Client, engine: FakeEngine) -> None:
    http.post(
        "/v1/chat/completions",
        json={
            "messages": HELLO,
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 11,
            "stop_token_ids": [4],
            "ignore_eos": True,
            "priority": 2,
            "cache_salt": "mine",
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.3,
            "logit_bias": {"5": 1},
            "stop": "END",
            "include_stop_str_in_output": True,
            "min_tokens": 2,
            "skip_special_tokens": False,
            "logprobs": True,
            "top_logprobs": 3,
            "prompt_logprobs": 1,
            "user": "me",
        },
    ).raise_for_status()
    assert engine.last.params == SamplingParams(
        max_tokens=7,
        temperature=0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        logit_bias={5: 1.0},
        seed=11,
        stop=("END",),
        include_stop=True,
        stop_token_ids=(4,),
        min_tokens=2,
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=3,
        prompt_logprobs=1,
    )
    assert (engine.last.spec.priority, engine.last.spec.salt) == (2, "mine")
    assert engine.last.spec.user == "me"


def test_null_is_absent_and_unknown_fields_are_ignored(
    http: httpx.Client, engine: FakeEngine
) -> None:
    absent = ["model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k"]
    absent += ["seed", "stop", "n", "tools", "response_format", "logprobs", "logit_bias"]
    harmless = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
        "tool_choice": "none",
        "user": "me",
        "metadata": {"a": "b"},
        "agent_hints": {"workflow_id": "w"},
        "unheard_of": [1, {"deep": None}],
        "stop": [],
        "response_format": {"type": "text"},
    }
    body = {"messages": HELLO, **dict.fromkeys(absent), **harmless}
    http.post("/v1/chat/completions", json=body).raise_for_status()
    assert engine.last.params == SamplingParams()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "a robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": "f"}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 100.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"priority": "high"}, "priority"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 129}, "stop"),
        ({"cache_salt": 3}, "cache_salt"),
        ({"cache_salt": "s" * 1025}, "cache_salt"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": "0.5"}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(10_000)}}, "logit_bias"),
        ({"stop": ["s"] * 200}, "stop"),
        ({"stop": "s" * 1025}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"user": 3}, "user"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    ],
)
def test_an_invalid_field_is_named(
    http: httpx.Client, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    error = error_of(http.post(CHAT, json={"messages": HELLO, **change}), 400)
    assert error["param"] == param
    assert not engine.requests


@pytest.mark.parametrize("number", ["1e999", "-1E+0309", "9" * 400 + ".0", "1" * 299 + "e60"])
def test_a_number_beyond_the_range_of_floats_is_rejected(http: httpx.Client, number: str) -> None:
    for field, path in (('"temperature": %s', "temperature"), ('"x": [{"y": %s}]', "x[0].y")):
        body = '{"messages": [{"role": "user", "content": "hi"}], %s}' % (field % number)
        assert error_of(http.post(CHAT, content=body), 400)["param"] == path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("structural_tag", {}),
        ("chat_template", "{{ 1 }}"),
        ("best_of", 2),
        ("do_sample", False),
        ("json_mode", True),
        ("lora_path", "adapter"),
        ("max_output_tokens", 3),
        ("mirostat_mode", 2),
        ("num_beams", 2),
        ("num_predict", 3),
        ("options", {"num_ctx": 4096}),
        ("stop_sequences", ["x"]),
        ("system", "Be brief."),
        ("tfs", 0.9),
    ],
)
def test_an_unsupported_field_of_a_chat_is_rejected(
    http: httpx.Client, engine: FakeEngine, field: str, value: Any
) -> None:
    error = error_of(http.post(CHAT, json={"messages": HELLO, field: value}), 400)
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"
    assert field in error["message"]
    assert not engine.requests


@pytest.mark.parametrize("schema", [ChatRequest, CompletionRequest])
def test_every_unsupported_field_has_its_harmless_values(
    schema: type[ChatRequest | CompletionRequest],
) -> None:
    for field, accepted in schema.unsupported.items():
        for value in (None, *accepted):
            check_supported({field: value}, schema.unsupported)
        with pytest.raises(InvalidRequestError, match=f"{field} is not supported; (use|omit)"):
            check_supported({field: {"some": "thing"}}, schema.unsupported)


@pytest.mark.parametrize("field", ["best_of", "suffix"])
def test_an_unsupported_field_of_a_completion_is_rejected(http: httpx.Client, field: str) -> None:
    value = {"best_of": 2, "suffix": "x"}[field]
    answer = http.post("/v1/completions", json={"prompt": "a", field: value})
    assert error_of(answer, 400)["param"] == field


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"logprobs": 1.5}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 129}, "n"),
    ],
)
def test_an_invalid_field_of_a_completion_is_named(
    http: httpx.Client, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", **change})
    assert error_of(answer, 400)["param"] == param
    assert not engine.requests
