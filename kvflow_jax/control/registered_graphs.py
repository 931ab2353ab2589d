"""Agent Step Graphs that tenants have registered, by name."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.step_graph import Graph

MAX_GRAPHS = 10_000


class NamedGraph(NamedTuple):
    """The graph that a caller names; ``is_known`` is False if it is not registered."""

    graph: Graph | None
    is_known: bool


class RegisteredGraphs:
    """The graphs of all tenants, ``MAX_GRAPHS`` at most: the least recently registered go first."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()  # by tenant, id

    def register(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Register a graph for the runs of a tenant; replaces one of the same name."""
        self._graphs[tenant, graph_id] = graph
        self._graphs.move_to_end((tenant, graph_id))
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def unregister(self, tenant: str, graph_id: str) -> bool:
        """Forget a graph; return False if there is none of this name."""
        return self._graphs.pop((tenant, graph_id), None) is not None

    def find(self, tenant: str, graph_id: str | None) -> NamedGraph:
        """Return the graph of this name; known, and None, if no name is given."""
        if graph_id is None:
            return NamedGraph(None, True)
        graph = self._graphs.get((tenant, graph_id))
        return NamedGraph(graph, graph is not None)

    def find_hinted(self, tenant: str, hints: Hints) -> NamedGraph:
        """Return the graph that hints contain or name."""
        if hints.graph is not None:
            return NamedGraph(hints.graph, True)
        return self.find(tenant, hints.graph_id)
