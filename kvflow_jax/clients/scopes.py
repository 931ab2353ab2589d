"""Runs and steps that a program names itself, whatever makes its calls."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Generic, TypeVar

from kvflow_jax.clients.call import Call
from kvflow_jax.clients.names import short_name
from kvflow_jax.clients.runs import GraphOf, Run

T = TypeVar("T")

_run: ContextVar[Run | None] = ContextVar("kvflow_run", default=None)
_step: ContextVar[Call | None] = ContextVar("kvflow_step", default=None)


class Scope(Generic[T]):
    """Sets a context variable for the length of a ``with`` or ``async with`` block."""

    def __init__(self, variable: ContextVar[T | None], value: T) -> None:
        self._variable, self._value = variable, value
        self._before: list[T | None] = []

    def __enter__(self) -> T:
        # Not a token: a generator may be closed in another context than its own.
        self._before.append(self._variable.get())
        self._variable.set(self._value)
        return self._value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._variable.set(self._before.pop())

    async def __aenter__(self) -> T:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)


class RunScope(Scope[Run]):
    """The block of one run; its end is the run's."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._value.end()


def run_scope(run_id: object, graph_of: GraphOf | None) -> RunScope:
    return RunScope(_run, Run(run_id, graph_of))


def step_scope(agent: object, session: object) -> Scope[Call]:
    session_id = None if session is None else short_name(session)
    outlives_run = session_id is not None
    return Scope(_step, Call(short_name(agent), session=session_id, outlives_run=outlives_run))


def with_declared(call: Call | None) -> Call | None:
    """Return a framework's call with what the program says itself, which precedes it."""
    run, step = _run.get(), _step.get()
    if run is not None and call is not None and call.run is not None:
        run.take_graph(call.run.graph_of)
    if step is not None:
        run = run if run is not None or call is None else call.run
        name = None if run is None else f"{run.id}:{step.agent}"
        on_sent = None if call is None else call.on_sent
        return replace(step, run=run, conversation=name, on_sent=on_sent)
    if run is None:
        return call
    return Call(None, run) if call is None else replace(call, run=run)
