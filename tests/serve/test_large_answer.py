"""Answers with many log probabilities are written elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.large_answer import MAX_INLINE_LOGPROBS, is_large, write_answer

ENTRY = TokenLogprobs(1, -1.0, ((2, -2.0), (3, -3.0)))


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_many_log_probabilities_are_written_on_a_thread(field: str) -> None:
    num_fitting = MAX_INLINE_LOGPROBS // 3

    async def run(work: Callable[[], Any], /) -> Any:
        return await asyncio.to_thread(work)

    for num in (0, num_fitting, num_fitting + 1):
        choices = [ChoiceDelta(0), ChoiceDelta(1, **{field: [ENTRY] * num})]
        written = asyncio.run(write_answer(choices, threading.get_ident, run))
        assert is_large(choices) == (written != threading.get_ident()) == (num > num_fitting)
