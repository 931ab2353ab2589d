"""Ends of runs, told in the background."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kvflow_jax.clients.run_ends import RunEnds


def test_ends_are_told_in_order_without_waiting() -> None:
    told: list[tuple[str, str]] = []
    go_on = threading.Event()

    def post(url: str, headers: Mapping[str, str], body: object) -> None:
        assert go_on.wait(10)
        told.append((url, headers["authorization"]))

    ends = RunEnds(post)
    for i in range(3):
        ends.put(f"url-{i}", {"authorization": f"key-{i}"})
    assert not told
    go_on.set()
    ends.wait()
    assert told == [(f"url-{i}", f"key-{i}") for i in range(3)]


def test_a_thread_begins_again_after_a_pause() -> None:
    told: list[str] = []
    ends = RunEnds(lambda url, headers, body: told.append(url))
    ends.wait()
    for url in ("a", "b"):
        ends.put(url, {})
        ends.wait()
    assert told == ["a", "b"]


def test_nothing_more_is_told_after_a_failure() -> None:
    tried: list[str] = []

    def post(url: str, headers: Mapping[str, str], body: object) -> None:
        tried.append(url)
        raise OSError("refused")

    ends = RunEnds(post)
    for url in ("a", "b"):
        ends.put(url, {})
    ends.wait()
    ends.put("c", {})
    ends.wait()
    assert tried == ["a"]


def test_an_end_may_come_while_another_one_is_put() -> None:
    """A finalizer runs at any point of its thread, within this very call too."""
    told: list[str] = []
    ends = RunEnds(lambda url, headers, body: told.append(url))
    with ends._lock:
        ends.put("within", {})
    ends.wait()
    assert told == ["within"]


def test_the_body_says_that_sessions_are_kept() -> None:
    told: list[object] = []
    ends = RunEnds(lambda url, headers, body: told.append(body))
    ends.put("a", {})
    ends.put("b", {}, keeps_sessions=True)
    ends.wait()
    assert told == [{"finished": True}, {"finished": True, "keep_sessions": True}]
