"""What recognition and learning cost: host time of a request, and memory of an agent."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec

PAGE_SIZE = 16
PROMPT_TOKENS = 2_000
LONGER_TOKENS = 10_000  # more, for the growth
NUM_AGENTS = 8  # of a ring
NUM_OUTPUT = 100
_VOCAB_SIZE = 49_152
_ROLE_SHARE = 0.75  # of a prompt


def identity_figures(*, num_calls: int = 400) -> dict[str, Any]:
    """Return milliseconds of a request at two lengths, and bytes of an agent."""
    short = _ms_per_request(PROMPT_TOKENS, num_calls)
    longer = _ms_per_request(PROMPT_TOKENS + LONGER_TOKENS, num_calls)
    return {
        "identity_ms_per_request": short,
        "identity_ms_per_10k_tokens": longer - short,
        "learned_bytes_per_agent": _bytes_per_agent(),
    }


def _ms_per_request(num_tokens: int, num_calls: int) -> float:
    """Return the median host time of a request: its caller, what is learned, and its forecasts.

    Block hashes are left out: the LRU fallback and the learning of prefixes need them in any case.
    """
    order = CallOrder(PAGE_SIZE, LearnedOrder())
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(0, _VOCAB_SIZE, count).astype(np.int32)

    roles = [tokens(int(_ROLE_SHARE * num_tokens)) for _ in range(NUM_AGENTS)]
    answer = tokens(NUM_OUTPUT)
    times = []
    for number in range(num_calls):
        role = roles[number % NUM_AGENTS]
        parts = [role, answer, tokens(num_tokens - len(role) - NUM_OUTPUT)]
        request = _request(number, np.concatenate(parts), len(role))
        block_hashes(request, request.num_prompt, PAGE_SIZE)
        begun_s = time.perf_counter()
        caller = order.begin_call(request, float(number))
        order.forecast("", caller.run)
        spent_s = time.perf_counter() - begun_s
        answer = tokens(NUM_OUTPUT)
        for token in answer.tolist():
            request.append(token)
        begun_s = time.perf_counter()
        order.end_call(request, number + 0.5, is_done=True)
        order.forecast("", caller.run)
        times.append(spent_s + time.perf_counter() - begun_s)
    return 1e3 * statistics.median(times[num_calls // 4 :])


def _request(number: int, prompt: np.ndarray, num_system: int) -> Request:
    return Request(
        RequestSpec(prompt, num_system=num_system),
        lambda output: None,
        request_id=number,
        arrival_s=0.0,
        root=RootKey("model", "", ""),
        max_len=len(prompt) + NUM_OUTPUT,
        stop_ids=frozenset(),
        seed=(0, 0),
        detokenizer=None,
    )


def _bytes_per_agent(num_agents: int = 1000) -> float:
    """Return the estimate of what is learned of each of many agents in a ring."""
    learned = LearnedOrder()
    names = [f"prefix-{number:012x}" for number in range(num_agents)]
    history: tuple[str, ...] = ()
    for agent in names * 3:
        learned.observe("", history, agent, 1.0)
        history = (*history, agent)[-8:]
    return learned.usage.num_bytes / num_agents
