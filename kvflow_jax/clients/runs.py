"""One execution of a workflow, as its requests name it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

from kvflow_jax.clients.names import short_name

GraphOf = Callable[[str], str | None]  # first agent of a run -> JSON form of its graph


class Run:
    """A run: its name, its graph, and the servers to which its end is reported.

    Thread-safe, also for finalizers.

    Args:
        run_id: by default a random one.
        graph_of: the graph; a run keeps what it returns for the first call, as the server does.
    """

    def __init__(self, run_id: object = None, graph_of: GraphOf | None = None) -> None:
        self.id = short_name(uuid.uuid4().hex if run_id is None else run_id)
        self._graph_of = graph_of
        self._lock = threading.RLock()
        self._graph: str | None = None
        self._has_begun = False
        self._on_end: dict[object, Callable[[bool], None]] = {}
        self._keeps_sessions = False

    def graph_json(self, agent: str, default: GraphOf | None = None) -> str | None:
        """Return the JSON form of the run's graph; ``agent`` makes the call that asks for it.

        Args:
            default: the graph of a run that was begun without one.
        """
        with self._lock:
            if not self._has_begun:
                graph_of = self._graph_of or default
                self._graph = graph_of(agent) if graph_of is not None else None
                self._has_begun = True
            return self._graph

    @property
    def graph_of(self) -> GraphOf | None:
        return self._graph_of

    def take_graph(self, graph_of: GraphOf | None) -> None:
        """Take a graph, if there is none yet."""
        with self._lock:
            self._graph_of = self._graph_of or graph_of

    def keep_sessions(self) -> None:
        """Note that later runs may continue conversations of this one."""
        self._keeps_sessions = True

    def at_end(self, key: object, tell: Callable[[bool], None]) -> None:
        """Call ``tell`` when the run ends, once for each key, with whether it keeps sessions."""
        with self._lock:
            self._on_end.setdefault(key, tell)

    def end(self) -> None:
        """Tell that the run is over."""
        with self._lock:
            told, self._on_end = self._on_end, {}
        for tell in told.values():
            tell(self._keeps_sessions)
