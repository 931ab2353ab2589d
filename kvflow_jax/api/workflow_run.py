"""One run (execution) of a workflow through the Python API."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from kvflow_jax.api.caller import Caller
from kvflow_jax.errors import EngineClosedError, InvalidRequestError
from kvflow_jax.requests.request_spec import check_hints
from kvflow_jax.workflow.hints import MAX_ID_LEN, Hints
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

P = ParamSpec("P")
Result = TypeVar("Result")

TENANT = ""  # all callers in this process are one tenant


def _by_agent(
    method: Callable[Concatenate[Caller, P], Result],
) -> Callable[Concatenate[WorkflowRun, str, P], Result]:
    """Return a method of ``Caller`` as one of a run, with an agent's name as its first argument."""

    def call(self: WorkflowRun, agent: str, *args: P.args, **kwargs: P.kwargs) -> Result:
        return method(self._caller_of(agent), *args, **kwargs)

    call.__name__ = method.__name__
    call.__doc__ = f"Call ``LLM.{method.__name__}`` for an agent, a node of the workflow."
    # Concatenate has positional arguments only; callers may name the agent, too.
    return call  # type: ignore[return-value]


class WorkflowRun:
    """One execution of a workflow, whose agents are called by name; made by ``LLM.run``.

        with llm.run(Workflow().edge("planner", "coder")) as run:
            plan = run.chat("planner", messages)
            code = run.chat("coder", [*brief, {"role": "user", "content": plan.text}])

    ``chat``, ``generate``, ``stream`` and ``stream_chat`` are those of ``LLM`` with an agent's name
    as their first argument; the run sets workflow, agent and graph of their hints. From the calls
    the engine computes each agent's steps-to-execution: it keeps or prefetches the KV of agents
    that run next, and first evicts KV that no agent will read. Any thread may call any agent.

    An agent that is not in the graph is served too; its ``hint_status`` is then ``clipped``. A call
    after the last agent of the graph begins the run anew.

    Every call raises InvalidRequestError after ``end``, and if the agent's name is not a string of
    1 to 256 characters.

    Attributes:
        workflow_id: the run's name.
    """

    def __init__(
        self, llm: Caller, workflow: Workflow | None = None, workflow_id: str | None = None
    ) -> None:
        if workflow is not None and not isinstance(workflow, Workflow):
            raise InvalidRequestError(
                'workflow must be a Workflow, like Workflow().edge("planner", "coder")', "workflow"
            )
        if workflow is not None and not workflow.nodes:
            raise InvalidRequestError("a workflow needs at least one node", "workflow")
        if workflow_id is not None:
            _check_id(workflow_id, "workflow_id")
        self.workflow_id = workflow_id or uuid.uuid4().hex
        self._caller = llm
        self._graph: Graph | None = None if workflow is None else workflow.freeze()
        self._lock = threading.Lock()  # guards _is_over
        self._is_over = False
        self._begin()

    chat = _by_agent(Caller.chat)
    generate = _by_agent(Caller.generate)
    stream = _by_agent(Caller.stream)
    stream_chat = _by_agent(Caller.stream_chat)

    def advance(self, completed: Iterable[str] = (), running: Iterable[str] = ()) -> list[str]:
        """Report progress without calls: agents that ran elsewhere, or will not run.

        Args:
            completed: agents that have completed, in the order of their completion.
            running: agents that run now, once for each concurrent call.

        Returns:
            The agents that are not in the graph, which are ignored.

        Raises:
            InvalidRequestError: an agent's name is invalid, or the run is over.
            EngineClosedError: the engine is closed.
        """
        done, begun = _check_agents(completed, "completed"), _check_agents(running, "running")
        self._check_open()
        engine = self._caller.engine
        unknown = engine.advance_run(TENANT, self.workflow_id, done, begun)
        if unknown is None:  # the run had reached the end of its graph
            self._begin()
            unknown = engine.advance_run(TENANT, self.workflow_id, done, begun)
        return unknown or []

    def end(self) -> None:
        """End the run: the engine no longer keeps KV for its agents. Idempotent."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        with contextlib.suppress(EngineClosedError):
            self._caller.engine.end_run(TENANT, self.workflow_id)

    def __enter__(self) -> WorkflowRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def _begin(self) -> None:
        self._caller.engine.begin_run(TENANT, self.workflow_id, self._graph)

    def _caller_of(self, agent: str) -> Caller:
        caller = self._caller
        return Caller(caller.engine, caller.encoder, partial(self._hints, agent))

    def _hints(self, agent: str, hints: Hints | None) -> Hints:
        _check_id(agent, "agent")
        self._check_open()
        check_hints(hints)
        hints = Hints() if hints is None else hints
        return replace(hints, workflow_id=self.workflow_id, agent_id=agent, graph=self._graph)

    def _check_open(self) -> None:
        with self._lock:
            if self._is_over:
                raise InvalidRequestError("this run is over: begin another with llm.run")


def _check_id(name: object, param: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_LEN:
        raise InvalidRequestError(
            f"{param} must be a string of 1 to {MAX_ID_LEN} characters, got {name!r:.80}", param
        )


def _check_agents(agents: Iterable[str], param: str) -> list[str]:
    """Return the names of agents as a list.

    Raises:
        InvalidRequestError: ``agents`` is no list of names.
    """
    if isinstance(agents, str):
        raise InvalidRequestError(f"{param} must be a list of agents, got {agents!r:.80}", param)
    names = list(agents)
    for name in names:
        _check_id(name, param)
    return names
