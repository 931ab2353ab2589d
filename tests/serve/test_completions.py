from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.requests.outputs import FinishReason, TokenLogprobs
from kvflow_jax.serve.completions import CompletionFormat, echo_prompts, encode_text
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.schemas import CompletionRequest
from kvflow_jax.workflow.hints import Hints
from tests.serve.serve_fakes import FakeEngine, FakeTokenizer
from tests.serve.serve_requests import PLANNER, error_of


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_a_prompt_may_be_text_or_token_ids_or_a_list_of_either(
    client: openai.OpenAI, engine: FakeEngine, prompt: Any, seen: list[str]
) -> None:
    engine.reply = lambda request: [request.prompt.upper()]
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert [request.prompt for request in engine.requests.values()] == seen
    assert [choice.index for choice in answer.choices] == list(range(len(seen)))
    assert [choice.text for choice in answer.choices] == [text.upper() for text in seen]
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage.prompt_tokens == len("".join(seen))
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert engine.last.params.max_tokens == 16  # OpenAI's default


def test_streams_of_several_prompts_interleave(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply = lambda request: ["2"] if request.prompt == "b" else None
    with client.completions.create(
        model="tiny",
        prompt=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        first, _ = engine.wait_for_requests(2)
        while (chunk := next(stream)).choices[0].finish_reason is None:
            assert (chunk.choices[0].index, chunk.choices[0].text) == (1, "2")
        engine.emit(first, "1")
        assert next(stream).choices[0].text == "1"
        engine.finish(first)
        last, usage = list(stream)
    assert (last.choices[0].index, last.choices[0].finish_reason) == (0, "stop")
    assert usage.choices == []
    assert usage.usage.total_tokens == 4


def test_a_rejected_prompt_aborts_the_others_of_its_request(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply = None
    too_long = "x" * engine.max_model_len
    answer = http.post("/v1/completions", json={"prompt": ["a", too_long]})
    assert answer.status_code == 400
    assert engine.aborted == [engine.last.request_id]


@pytest.mark.parametrize("stream", [False, True])
def test_each_prompt_gets_n_choices_with_consecutive_seeds(
    client: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    engine.reply = lambda request: [f"{request.prompt}{request.params.seed}"]
    body = {"model": "tiny", "prompt": ["a", "bb"], "n": 3, "seed": 7}
    if stream:
        chunks = list(
            client.completions.create(**body, stream=True, stream_options={"include_usage": True})
        )
        texts = dict.fromkeys(range(6), "")
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        usage = chunks[-1].usage
    else:
        answer = client.completions.create(**body)
        texts = {choice.index: choice.text for choice in answer.choices}
        usage = answer.usage
    assert texts == {0: "a7", 1: "a8", 2: "a9", 3: "bb7", 4: "bb8", 5: "bb9"}
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 6)


def test_the_fixed_prefix_of_a_text_prompt_is_counted_in_tokens(
    http: httpx.Client, engine: FakeEngine
) -> None:
    def hints_of(prompt: Any, fixed_prefix: Any) -> list[Hints]:
        engine.requests.clear()
        body = {"prompt": prompt, "agent_hints": {**PLANNER, "fixed_prefix": fixed_prefix}}
        http.post("/v1/completions", json=body).raise_for_status()
        return [request.hints for request in engine.requests.values()]

    assert [hints.num_fixed for hints in hints_of("hello", None)] == [None]
    short, long = hints_of([[1, 2], [1, 2, 3, 4]], {"end": 3})
    assert (short.num_fixed, short.is_clipped) == (2, True)
    assert (long.num_fixed, long.is_clipped) == (3, False)
    (hints,) = hints_of("hello", {"unit": "message", "end": 1})
    assert (hints.num_fixed, hints.is_clipped) == (None, True)


def test_all_choices_of_a_request_share_its_hints(http: httpx.Client, engine: FakeEngine) -> None:
    engine.num_cached, engine.num_cached_host = 2, 1
    body = {"prompt": ["ab", "cd"], "n": 2, "agent_hints": PLANNER}
    answer = http.post("/v1/completions", json=body).json()
    assert [request.hints.agent_id for request in engine.requests.values()] == ["planner"] * 4
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4  # of two prompts
    assert answer["kvflow"] == {
        "cached_tokens_details": {"device": 2, "host": 2},
        "hint_status": "applied",
    }


@pytest.mark.parametrize(
    "prompt", [None, 3, [], [1, "a"], [[1], "a"], [True], [[1.5]], {"a": 1}, "", [[]], [2**40]]
)
def test_an_invalid_prompt_is_rejected(http: httpx.Client, prompt: Any) -> None:
    assert error_of(http.post("/v1/completions", json={"prompt": prompt}), 400)["param"] == "prompt"


def test_a_missing_prompt_is_rejected(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/completions", json={}), 400)["param"] == "prompt"


@pytest.mark.parametrize("prompt", [[-1], [2**31], [2**32], [10**30], [[1], [-5]]])
def test_token_ids_are_checked_before_echo_decodes_them(http: httpx.Client, prompt: Any) -> None:
    body = {"prompt": prompt, "max_tokens": 1, "echo": True}
    assert error_of(http.post("/v1/completions", json=body), 400)["param"] == "prompt"


@pytest.mark.parametrize("prompt", [["ab", "cd"], [[97, 98], [99, 100]]])
def test_echo_without_output_returns_the_prompt_alone(
    http: httpx.Client, engine: FakeEngine, prompt: Any
) -> None:
    body = {"prompt": prompt, "echo": True, "max_tokens": 0}
    answer = http.post("/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "cd"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == 4
    assert engine.last.params.max_tokens == 1  # a step always samples


def test_echo_returns_logprobs_of_prompt_and_output_in_one_list() -> None:
    tokenizer = FakeTokenizer()
    body = CompletionRequest(prompt="ab", echo=True, logprobs=1, prompt_logprobs=2)
    echoes = echo_prompts(tokenizer, ["ab"], [[97, 98]])
    answer_format = CompletionFormat("tiny", body, LogprobWriter(tokenizer), echoes)
    alternatives = ((120, -0.5), (121, -1.0), (122, -1.5))
    first = ChoiceDelta(0, "c", prompt_logprobs=[TokenLogprobs(98, -2.0, alternatives)])
    first.logprobs = [TokenLogprobs(99, -3.0)]
    (choice,) = answer_format.chunks(first)[0]["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -3.0]
    assert choice["logprobs"]["top_logprobs"][1] == {"x": -0.5, "b": -2.0}
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert list(choice["prompt_logprobs"][1]) == ["120", "121", "98"]
    last = ChoiceDelta(0, "d", FinishReason.STOP, logprobs=[TokenLogprobs(100, -4.0)])
    (choice,) = answer_format.chunks(last)[0]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("d", "stop")
    assert choice["logprobs"]["text_offset"] == [3]
    assert choice["prompt_logprobs"] is None


class BosTokenizer:
    """Token 1 is the BOS, written "^"; every other character is its code."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [1 if char == "^" else ord(char) for char in text]


@pytest.mark.parametrize(
    ("text", "adds_special_tokens", "ids"),
    [
        ("a", True, [1, 97]),
        ("^a", True, [1, 97]),
        ("^^a", True, [1, 1, 97]),
        ("", True, [1]),
        ("^", True, [1]),
        ("^a", False, [1, 97]),
        ("a", False, [97]),
        ("aa", False, [97, 97]),
    ],
)
def test_a_text_with_the_bos_gets_no_second_one(
    text: str, adds_special_tokens: bool, ids: list[int]
) -> None:
    assert encode_text(BosTokenizer(), text, adds_special_tokens) == ids


def test_a_tokenizer_without_a_bos_removes_nothing() -> None:
    tokenizer = BosTokenizer()
    tokenizer.encode = lambda text, *, add_special_tokens=True: [*text.encode()]
    assert encode_text(tokenizer, "aab", True) == [97, 97, 98]
