"""One run of a workflow through the Python API."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, overload

from kvflow_jax.api.completion import Completion, Stream
from kvflow_jax.api.prompts import Message, Prompt
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import EngineClosedError, InvalidRequestError
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import MAX_ID_LEN, Hints
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

TENANT = ""  # callers in one process are one client


class TextGenerator(Protocol):
    """What a run needs of ``LLM``, which makes the runs."""

    @property
    def engine(self) -> EngineThread: ...

    def chat(
        self, messages: Any, params: Any, *, hints: Hints | None, progress: bool
    ) -> Completion | list[Completion]: ...

    def generate(
        self, prompts: Any, params: Any, *, hints: Hints | None, progress: bool
    ) -> Completion | list[Completion]: ...

    def stream(self, prompt: Prompt, params: SamplingParams, *, hints: Hints | None) -> Stream: ...

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams, *, hints: Hints | None
    ) -> Stream: ...


class WorkflowRun:
    """Calls of a workflow's agents, any of them from any thread; made by ``LLM.run``.

        with llm.run(Workflow().edge("planner", "coder")) as run:
            plan = run.chat("planner", messages)
            code = run.chat("coder", [*brief, {"role": "user", "content": plan.text}])

    Each call is that of ``LLM`` with an agent's name before it. The engine follows the run from
    call to call: what agents read next stays or is brought back, what none will read goes first.
    An agent that the graph does not know is served like the others, and its ``hint_status`` says
    so. Where a run has come to its end and is called on, it begins anew.

    Calls raise InvalidRequestError after ``end``, and for an agent that is no name.

    Attributes:
        workflow_id: the run's name.
    """

    def __init__(
        self, llm: TextGenerator, workflow: Workflow | None = None, workflow_id: str | None = None
    ) -> None:
        if workflow is not None and not isinstance(workflow, Workflow):
            raise InvalidRequestError(
                'a run is of a Workflow, like Workflow().edge("planner", "coder")', "workflow"
            )
        if workflow is not None and not workflow.nodes:
            raise InvalidRequestError("a workflow needs at least one node", "workflow")
        if workflow_id is not None:
            _check_name(workflow_id, "workflow_id")
        self.workflow_id = workflow_id or uuid.uuid4().hex
        self._llm = llm
        self._graph: Graph | None = None if workflow is None else workflow.freeze()
        self._lock = threading.Lock()  # guards the next
        self._is_over = False
        self._begin()

    @overload
    def chat(
        self,
        agent: str,
        messages: Sequence[Message],
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        agent: str,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def chat(
        self,
        agent: str,
        messages: Any,
        params: Any = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Let an agent answer one conversation, or many at once. See ``LLM.chat``.

        Args:
            hints: what else is known of the call; whose it is they need not say.
        """
        named = self._hints(agent, hints)
        return self._llm.chat(messages, params, hints=named, progress=progress)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        agent: str,
        prompts: str,
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        agent: str,
        prompts: Sequence[int],
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        agent: str,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def generate(
        self,
        agent: str,
        prompts: Any,
        params: Any = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Let an agent continue one prompt, or many at once. See ``LLM.generate``."""
        named = self._hints(agent, hints)
        return self._llm.generate(prompts, params, hints=named, progress=progress)

    def stream(
        self,
        agent: str,
        prompt: Prompt,
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Let an agent continue one prompt, giving text as it comes. See ``LLM.stream``."""
        return self._llm.stream(prompt, params, hints=self._hints(agent, hints))

    def stream_chat(
        self,
        agent: str,
        messages: Sequence[Message],
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Let an agent answer one conversation, giving text as it comes."""
        return self._llm.stream_chat(messages, params, hints=self._hints(agent, hints))

    def advance(self, completed: Iterable[str] = (), running: Iterable[str] = ()) -> list[str]:
        """Tell of progress that no call shows: agents that ran elsewhere, or will not run.

        Args:
            completed: agents that are done, in that order.
            running: agents that run now, once for each call.

        Returns:
            Agents that the graph does not know; they change nothing.
        """
        done, begun = _names(completed, "completed"), _names(running, "running")
        self._check_open()
        engine = self._llm.engine
        unknown = engine.advance_run(TENANT, self.workflow_id, done, begun)
        if unknown is None:  # it had come to its end
            self._begin()
            unknown = engine.advance_run(TENANT, self.workflow_id, done, begun)
        return unknown or []

    def end(self) -> None:
        """The run is over: nothing of it is waited for. Ending twice is fine."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        with contextlib.suppress(EngineClosedError):
            self._llm.engine.end_run(TENANT, self.workflow_id)

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
        self._llm.engine.begin_run(TENANT, self.workflow_id, self._graph)

    def _hints(self, agent: str, hints: Hints | None) -> Hints:
        _check_name(agent, "agent")
        self._check_open()
        known = Hints() if hints is None else hints
        return replace(known, workflow_id=self.workflow_id, agent_id=agent, graph=self._graph)

    def _check_open(self) -> None:
        with self._lock:
            if self._is_over:
                raise InvalidRequestError("this run is over; begin another with llm.run")


def _check_name(name: Any, param: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_LEN:
        raise InvalidRequestError(
            f"{param} must be a string of 1 to {MAX_ID_LEN} characters, got {name!r:.80}", param
        )


def _names(agents: Iterable[str], param: str) -> list[str]:
    if isinstance(agents, str):
        raise InvalidRequestError(f"{param} must be a list of agents, got {agents!r:.80}", param)
    names = list(agents)
    for name in names:
        _check_name(name, param)
    return names
