"""Runs and steps that a program names."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator

import pytest

from kvflow_jax.clients.call import Call
from kvflow_jax.clients.runs import Run
from kvflow_jax.clients.scopes import run_scope, step_scope, with_declared


def names(call: Call | None) -> tuple[str | None, str | None] | None:
    return None if call is None else (call.run and call.run.id, call.agent)


def test_steps_and_runs_nest() -> None:
    assert with_declared(None) is None
    with run_scope("r", None) as run, step_scope("a", None) as call:
        assert (run.id, call.agent) == ("r", "a")
        with step_scope("b", "s"):
            inner = with_declared(None)
            assert names(inner) == ("r", "b")
            assert inner is not None
            assert inner.session == "s"
            with run_scope("r2", None):
                assert names(with_declared(None)) == ("r2", "b")
        assert names(with_declared(None)) == ("r", "a")
    assert with_declared(None) is None


def test_one_scope_may_be_used_again_and_within_itself() -> None:
    scope = step_scope("a", None)
    with scope, step_scope("b", None), scope:
        assert names(with_declared(None)) == (None, "a")
    assert with_declared(None) is None


def test_an_error_ends_the_step() -> None:
    with pytest.raises(ValueError, match="x"), step_scope("a", None):
        raise ValueError("x")
    assert with_declared(None) is None


def test_tasks_and_threads_with_a_context_are_in_the_step() -> None:
    async def agent(name: str) -> object:
        async with step_scope(name, None):
            await asyncio.sleep(0)
            return names(with_declared(None))

    async def run() -> list[object]:
        async with run_scope("r", None):
            return await asyncio.gather(agent("a"), agent("b"))

    assert asyncio.run(run()) == [("r", "a"), ("r", "b")]
    seen: list[object] = []
    with step_scope("a", None):
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=lambda: seen.append(context.run(lambda: names(with_declared(None))))
        )
        thread.start()
        thread.join()
    assert seen == [(None, "a")]


def test_a_generator_may_be_closed_in_another_context() -> None:
    def steps() -> Iterator[int]:
        with step_scope("a", None):
            yield 1

    generator = steps()
    contextvars.copy_context().run(next, generator)
    generator.close()
    assert with_declared(None) is None


def test_the_end_of_the_block_is_the_end_of_the_run() -> None:
    told: list[str] = []
    with run_scope("r", None) as run:
        run.at_end(0, lambda keeps: told.append("over"))
        assert not told
    assert told == ["over"]


def test_what_the_program_says_precedes_what_a_framework_knows() -> None:
    noted: list[str] = []
    framework = Call(
        "node", Run("own", lambda first: "graph"), on_sent=lambda: noted.append("node")
    )
    assert with_declared(framework) is framework
    with run_scope("r", None):
        call = with_declared(framework)
        assert call is not None
        assert call.run is not None
        assert names(call) == ("r", "node")
        assert call.run.graph_json("node") == "graph"
    with step_scope("a", None):
        call = with_declared(framework)
        assert call is not None
        assert names(call) == ("own", "a")
        assert call.on_sent is not None
        call.on_sent()
    assert noted == ["node"]
