"""An app without hints over HTTP, in a pool too small for it: its learned order is worth hits."""

from __future__ import annotations

import httpx

from experiments.bench.metrics_page import samples
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.reuse.predictors import CONTEXT_TREE, NONE
from tests.support.scripted_runner import PAGE, scripted_server

AGENTS = ("planner", "searcher", "coder", "tester", "writer")
RULES = " ".join(f"Rule {number}: be exact and brief." for number in range(8))
ROUNDS = 6
NUM_BYTES = "kvflow:tenant_state_bytes"


def play(http: httpx.Client) -> tuple[list[int], list[str]]:
    """Call the agents in turn, each with the answer of the one before.

    Returns:
        Cached tokens of each call, and the answers.
    """
    found, answers, task = [], [], "Begin."
    for _ in range(ROUNDS):
        for agent in AGENTS:
            messages = [
                {"role": "system", "content": f"You are the {agent}. {RULES}"},
                {"role": "user", "content": f"Go on from this: {task}"},
            ]
            body = {"messages": messages, "max_tokens": 64}
            answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            assert answer["kvflow"]["hint_status"] is None
            task = answer["choices"][0]["message"]["content"]
            found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            answers.append(task)
    return found, answers


def test_a_cycle_that_does_not_fit_hits_once_its_order_is_learned():
    played = {}
    for predictor in (NONE, CONTEXT_TREE):
        cache = CacheSettings(eviction="kvflow", predictor=predictor)
        with (
            # Room for about half of the agents.
            scripted_server(cache=cache, num_pages=65, max_model_len=64 * PAGE) as server,
            httpx.Client(base_url=server.url, timeout=60) as http,
        ):
            numbers = iter(range(1000))
            server.runner.answer = lambda prompt, numbers=numbers: f"Result {next(numbers)} is in."
            played[predictor] = play(http)
            page = http.get("/metrics").text
            kept = {labels["state"]: num for labels, num in samples(page, NUM_BYTES)}
            assert (kept["callers"] > 0) == (predictor != NONE)
    (by_lru, answers), (by_order, same_answers) = played[NONE], played[CONTEXT_TREE]
    assert same_answers == answers
    # LRU evicts what is read next, all but the block with which every prompt begins. Of the last
    # rounds, an order that is known saves the prompts of some agents.
    last = slice(-2 * len(AGENTS), None)
    assert max(by_lru[last]) <= PAGE
    assert sum(found > 4 * PAGE for found in by_order[last]) >= len(AGENTS) // 2
