"""Agent Step Graphs that tenants have registered, by name."""

from __future__ import annotations

from typing import NamedTuple

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.step_graph import Graph

MAX_BYTES = 16 << 20  # of one tenant's graphs


class NamedGraph(NamedTuple):
    """The graph that a caller names; ``is_known`` is False if its name is not that of the graph."""

    graph: Graph | None
    is_known: bool


class RegisteredGraphs:
    """The graphs of all tenants; those of a tenant that were used least recently go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._graphs: TenantLru[str, Graph] = TenantLru(max_bytes)

    @property
    def usage(self) -> Usage:
        return self._graphs.usage

    def register(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Register a graph for the runs of a tenant; replaces one of the same name."""
        self._graphs.put(tenant, graph_id, graph, graph.num_bytes)

    def unregister(self, tenant: str, graph_id: str) -> bool:
        """Forget a graph; return False if there is none of this name."""
        return self._graphs.pop(tenant, graph_id) is not None

    def find(self, tenant: str, graph_id: str | None) -> NamedGraph:
        """Return the graph of this name; known, and None, if no name is given."""
        if graph_id is None:
            return NamedGraph(None, True)
        graph = self._graphs.use(tenant, graph_id)
        return NamedGraph(graph, graph is not None)

    def find_hinted(self, tenant: str, hints: Hints) -> NamedGraph:
        """Return the graph that hints contain or name; the former precedes."""
        named = self.find(tenant, hints.graph_id)
        if hints.graph is None:
            return named
        is_same = named.graph is not None and named.graph.is_same_as(hints.graph)
        return NamedGraph(hints.graph, hints.graph_id is None or is_same)
