"""``/v1/learned_order``: shown and erased, by its tenant or an admin."""

from __future__ import annotations

import httpx
import pytest

from kvflow_jax.reuse.delay import Delay
from kvflow_jax.reuse.predictor import Transition
from tests.serve.serve_fakes import FakeEngine

ROWS = [
    Transition(("plan",), "search", 0.7, 12.345, Delay().observe(2.0)),
    Transition((), "plan", 1.0, 3.0, None),
]


def test_what_was_learned_is_shown_and_erased(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.get("/v1/learned_order").json() == {"object": "list", "data": []}
    engine.transitions[""] = ROWS
    first, second = http.get("/v1/learned_order").json()["data"]
    assert (first["context"], first["agent"]) == (["plan"], "search")
    assert (first["chance"], first["count"]) == (0.7, 12.35)
    assert first["delay_s"]["p50"] == pytest.approx(2.0)
    assert first["delay_s"]["p90"] > 2.0
    assert second == {"context": [], "agent": "plan", "chance": 1.0, "count": 3.0, "delay_s": None}
    assert len(http.get("/v1/learned_order?limit=1").json()["data"]) == 1
    deleted = {"object": "learned_order", "deleted": True}
    assert http.delete("/v1/learned_order").json() == deleted
    assert http.delete("/v1/learned_order").json() == {**deleted, "deleted": False}
    assert http.get("/v1/learned_order").json()["data"] == []


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "", "1e2", "٣", "9" * 5000])
def test_a_limit_that_is_none_is_refused(http: httpx.Client, limit: str) -> None:
    answer = http.get("/v1/learned_order", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
