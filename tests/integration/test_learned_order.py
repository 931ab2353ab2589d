"""The order of agents, learned over HTTP from calls without a hint, and kept over a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from experiments.bench.metrics_page import samples
from kvflow_jax.engine.cache_config import CacheSettings
from tests.support.scripted_runner import ScriptedServer, scripted_server

RULES = " ".join(f"Rule {number}: be exact and brief." for number in range(12))
ROLES = {role: f"You are the {role} of a team. {RULES}" for role in ("plan", "code", "check")}


@contextlib.contextmanager
def serving(path: Path) -> Iterator[tuple[ScriptedServer, httpx.Client]]:
    cache = CacheSettings(eviction="kvflow", predictor="context-tree", learned_order=path)
    with (
        scripted_server(cache=cache) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        numbers = iter(range(1000))
        server.runner.answer = lambda prompt: f"An answer with the number {next(numbers)} in it."
        yield server, http


def play(http: httpx.Client, num_rounds: int) -> None:
    """Let three roles call in turn, each with the answer of the one before."""
    answer = "Begin."
    for _ in range(num_rounds):
        for text in ROLES.values():
            messages = [
                {"role": "system", "content": text},
                {"role": "user", "content": f"Go on from this: {answer}"},
            ]
            body = {"messages": messages, "max_tokens": 64}
            chat = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            answer = chat["choices"][0]["message"]["content"]


def predictions(http: httpx.Client) -> dict[str, float]:
    page = http.get("/metrics").text
    return {labels["outcome"]: num for labels, num in samples(page, "kvflow:predicted_calls_total")}


def test_the_order_of_agents_without_hints_is_learned_kept_and_erased(tmp_path: Path) -> None:
    path = tmp_path / "order"
    with serving(path) as (_, http):
        play(http, 6)
        rows = http.get("/v1/learned_order").json()["data"]
        ring = {tuple(row["context"]): row["agent"] for row in rows if row["context"]}
        first = next(iter(ring))
        second, third = (ring[first],), (ring[ring[first],],)
        assert len({first, second, third}) == 3
        assert (ring[third],) == first
        counts = predictions(http)
        assert counts["right"] >= 9
        assert counts["wrong"] == 0
    with serving(path) as (_, http):
        again = http.get("/v1/learned_order").json()["data"]
        assert {tuple(row["context"]): row["agent"] for row in again if row["context"]} == ring
        play(http, 1)
        assert predictions(http)["right"] >= 2
        assert http.delete("/v1/learned_order").json()["deleted"]
        assert http.get("/v1/learned_order").json()["data"] == []
    with serving(path) as (_, http):
        assert http.get("/v1/learned_order").json()["data"] == []
