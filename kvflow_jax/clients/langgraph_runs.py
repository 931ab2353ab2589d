"""The runs of a LangGraph app, and whose call is being made in them.

A handler of callbacks in the app's own configuration sees each run begin and end, and each node.
It is inherited by everything that runs within, so that an HTTP client finds it, and the node, in
the configuration of the moment. This is the same in threads and tasks, as LangGraph copies its
context variable to both.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvflow_jax.clients.agent_graph import AgentGraph
from kvflow_jax.clients.call import Call
from kvflow_jax.clients.langgraph_app import SEPARATOR, is_app, read_app, tool_nodes
from kvflow_jax.clients.names import short_name
from kvflow_jax.clients.runs import Run

MAX_LIVE = 1 << 16  # parts of runs of one app at a time
MAX_THREADS = 1024  # whose last run is known


@dataclass(slots=True)
class _AppRun:
    """A run of the app; ``depth`` is the number of nodes of other apps around it."""

    run: Run
    thread: str | None
    depth: int
    is_interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A node in a run of the app; ``is_known`` if the graph has it."""

    app_run: _AppRun
    node: str
    is_known: bool


class LangGraphRuns:
    """The runs of one app; ``attach`` makes it a handler of its callbacks. Thread-safe."""

    def __init__(self, graph: AgentGraph, tools: set[str]) -> None:
        self.graph = graph
        self._lock = threading.Lock()
        self._run_of: OrderedDict[object, _AppRun] = OrderedDict()  # by id of its parts
        self._roots: dict[object, _AppRun] = {}
        self._node_of: dict[object, str] = {}  # node that a part is
        self._interrupted: OrderedDict[str, Run] = OrderedDict()  # by thread
        # Nodes that have run to their end, those that have called the model, the others.
        self._ran, self._called = set(tools), set[str]()
        self._shown: tuple[frozenset[str], AgentGraph] = (frozenset(), graph)

    def graph_json(self, first: str) -> str | None:
        """Return the graph without the nodes that are known to call no model."""
        with self._lock:
            silent = frozenset(self._ran - self._called)
            if self._shown[0] != silent:
                self._shown = (silent, self.graph.without(silent))
            return self._shown[1].to_json(first)

    # As LangChain calls its handlers.

    def on_chain_start(
        self,
        serialized: object,
        inputs: object,
        *,
        run_id: object,
        parent_run_id: object = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **named: object,
    ) -> None:
        metadata = metadata or {}
        path = _path(metadata)
        with self._lock:
            app_run = self._run_of.get(parent_run_id)
            if app_run is None:
                app_run = self._roots[run_id] = self._begin(inputs, metadata, len(path))
            self._run_of[run_id] = app_run
            if len(self._run_of) > MAX_LIVE:
                lost, _ = self._run_of.popitem(last=False)
                self._roots.pop(lost, None)
                self._node_of.pop(lost, None)
            node = SEPARATOR.join(path[app_run.depth :])
            if node in self.graph.nodes and named.get("name") == path[-1]:
                self._node_of[run_id] = node

    def on_chain_end(self, outputs: object, *, run_id: object, **named: object) -> None:
        with self._lock:
            self._run_of.pop(run_id, None)
            node = self._node_of.pop(run_id, None)
            if node is not None:
                self._ran.add(node)
            app_run = self._roots.pop(run_id, None)
        if app_run is not None:
            self._end(app_run)

    def on_chain_error(self, error: BaseException, *, run_id: object, **named: object) -> None:
        # An interrupt of a node is raised through it, and ends its run as if it were done.
        is_interrupt = any(one.__name__ == "GraphBubbleUp" for one in type(error).__mro__)
        with self._lock:
            app_run = self._run_of.pop(run_id, None)
            self._node_of.pop(run_id, None)
            if app_run is not None and is_interrupt:
                app_run.is_interrupted = True
            app_run = self._roots.pop(run_id, None)
        if app_run is not None:
            self._end(app_run)

    def find(self, part: object, path: Sequence[str]) -> _Place | None:
        """Return where in a run of this app the nodes of a path are; None in no run of it."""
        with self._lock:
            app_run = self._run_of.get(part)
        if app_run is None:
            return None
        own = path[app_run.depth :]
        for num in range(len(own), 0, -1):
            node = SEPARATOR.join(own[:num])
            if node in self.graph.nodes:
                return _Place(app_run, node, True)
        return _Place(app_run, SEPARATOR.join(own), False)

    def note_call(self, node: str) -> None:
        with self._lock:
            self._called.add(node)

    def _begin(self, inputs: object, metadata: Mapping[str, Any], depth: int) -> _AppRun:
        thread = metadata.get("thread_id")
        thread = None if thread is None else str(thread)
        is_resumed = inputs is None or type(inputs).__name__ == "Command"
        run = None
        if thread is not None:
            before = self._interrupted.pop(thread, None)
            run = before if is_resumed else None
        return _AppRun(run or Run(graph_of=self.graph_json), thread, depth)

    def _end(self, app_run: _AppRun) -> None:
        if app_run.is_interrupted and app_run.thread is not None:
            with self._lock:
                self._interrupted[app_run.thread] = app_run.run
                if len(self._interrupted) > MAX_THREADS:
                    self._interrupted.popitem(last=False)
        else:
            app_run.run.end()


def attach(app: Any) -> LangGraphRuns:
    """Return the runs of an app; at the first time, add them to the handlers of its callbacks."""
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.runnables.config import merge_configs

    handlers = (app.config or {}).get("callbacks") or ()
    for one in getattr(handlers, "handlers", handlers):
        if isinstance(one, LangGraphRuns):
            return one
    # In the event loop, not in a thread beside it: a node must not call before it has begun.
    kind = type("KVFlowHandler", (LangGraphRuns, BaseCallbackHandler), {"run_inline": True})
    runs: LangGraphRuns = kind(read_app(app), tool_nodes(app))
    app.config = merge_configs(app.config, {"callbacks": [runs]})
    return runs


class LangGraphCaller:
    """Finds the run and the node of the current call, in LangGraph's own configuration."""

    def __init__(self) -> None:
        self._gaps: list[str] = []  # of the app that was bound last

    @property
    def gaps(self) -> list[str]:
        return self._gaps

    def bind(self, graph: object) -> bool:
        if not is_app(graph):
            return False
        self._gaps = attach(graph).graph.gaps
        return True

    def current(self) -> Call | None:
        config_module = sys.modules.get("langgraph.config")
        if config_module is None:
            return None
        try:
            config = config_module.get_config()
        except RuntimeError:  # outside of an app
            return None
        metadata = config.get("metadata") or {}
        path = _path(metadata)
        if not path:
            return None
        thread, callbacks = metadata.get("thread_id"), config.get("callbacks")
        part = getattr(callbacks, "parent_run_id", None)
        name = _name(metadata, thread)
        found: tuple[LangGraphRuns, _Place] | None = None
        for handler in getattr(callbacks, "handlers", ()):
            place = handler.find(part, path) if isinstance(handler, LangGraphRuns) else None
            # Of an app within an app, the one that knows the node.
            if place is not None and (found is None or place.is_known > found[1].is_known):
                found = handler, place
        if found is None:
            run = None if thread is None else Run(thread)
            return Call(short_name(SEPARATOR.join(path)), run, conversation=name)
        runs, place = found
        return Call(
            short_name(place.node),
            place.app_run.run,
            conversation=name or _name(metadata, place.app_run.run.id),
            outlives_run=name is not None,
            on_sent=lambda: runs.note_call(place.node),
        )


def _path(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of the current node and of those around it, the outermost first."""
    namespace = metadata.get("langgraph_checkpoint_ns")
    if not namespace:
        return []
    # A number counts the apps that a node has called, one after the other.
    parts = [part for part in str(namespace).split("|") if not part.isdigit()]
    return [part.partition(":")[0] for part in parts]


def _name(metadata: Mapping[str, Any], owner: object) -> str | None:
    """Return the name of a node's conversation: over all turns of a thread, or within one run.

    Within a node that is an app, it is that of one execution of the node, as several may run side
    by side. So may several tasks of one node, which their number tells apart.
    """
    if owner is None:
        return None
    around, _, own = str(metadata.get("langgraph_checkpoint_ns")).rpartition("|")
    path: Sequence[object] = metadata.get("langgraph_path") or ()
    number = f"#{path[1]}" if len(path) > 1 and path[0] == "__pregel_push" else ""
    return short_name(f"{owner}|{around}|{own.partition(':')[0]}{number}")
