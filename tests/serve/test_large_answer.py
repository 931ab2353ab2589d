"""Answers with many log probabilities are the same, written elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.large_answer import MAX_INLINE_LOGPROBS, dump, is_large, write_answer

ENTRY = TokenLogprobs(1, -1.0, ((2, -2.0), (3, -3.0)))


@pytest.mark.parametrize("num", [0, 1, 63, 64, 65, 200])
def test_slices_are_the_same_text(num: int) -> None:
    entries = [{"token": f"\u2028{i}", "top": [1.5, None, True]} for i in range(num)]
    choice = {"index": 0, "logprobs": {"content": entries, "refusal": None}, "text": "\u00e9"}
    body = {"id": "a", "choices": [choice] * 70, "usage": {}, "prompt_logprobs": entries}
    expected = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    assert dump(body).decode() == expected
    assert dump(body, ensure_ascii=True).decode() == json.dumps(body, separators=(",", ":"))


def test_a_number_that_is_none_of_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"choices": [{"logprob": float("inf")}]})


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_many_log_probabilities_are_written_on_a_thread(field: str) -> None:
    num_fitting = MAX_INLINE_LOGPROBS // 3

    async def run(work: Callable[[], Any], /) -> Any:
        return await asyncio.to_thread(work)

    for num in (0, num_fitting, num_fitting + 1):
        choices = [ChoiceDelta(0), ChoiceDelta(1, **{field: [ENTRY] * num})]
        written = asyncio.run(write_answer(choices, threading.get_ident, run))
        assert is_large(choices) == (written != threading.get_ident()) == (num > num_fitting)
