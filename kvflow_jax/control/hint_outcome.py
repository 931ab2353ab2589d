"""The outcome of a request's hints: whether all, some or none of them could be used."""

from __future__ import annotations

from kvflow_jax.control.registered_graphs import NamedGraph
from kvflow_jax.workflow.hints import Hints, HintStatus
from kvflow_jax.workflow.step_graph import Graph


def outcome_of(
    hints: Hints,
    named: NamedGraph,
    run_graph: Graph | None,
    *,
    follows_order: bool,
    prefetches: bool,
) -> HintStatus:
    """Return the outcome of hints where the cache depends on hints.

    Args:
        named: the graph that they contain or name.
        run_graph: the graph with which their run began; None: it has none, or there is no run.
        follows_order: whether the order of agents decides anything; not while the tenant falls
            back to LRU.
        prefetches: whether prefixes are loaded ahead at all.
    """
    if hints.graph is None and not named.is_known:
        return HintStatus.UNKNOWN_GRAPH
    orders = bool(named.graph or hints.steps_to_execution or hints.next_agents)
    is_clipped = (
        hints.is_clipped
        or hints.has_unused
        or (hints.graph is not None and not named.is_known)
        or (orders and not follows_order)
        or (hints.prefetch is True and not prefetches)
        or (run_graph is not None and not _agrees(hints, named.graph, run_graph))
    )
    return HintStatus.CLIPPED if is_clipped else HintStatus.APPLIED


def priority_outcome(hints: Hints) -> HintStatus:
    """Return the outcome of hints without agent, run and session: a priority can be used."""
    if hints.priority is None:
        return HintStatus.IGNORED
    is_clipped = hints.is_clipped or hints.has_unused
    return HintStatus.CLIPPED if is_clipped else HintStatus.APPLIED


def _agrees(hints: Hints, graph: Graph | None, run_graph: Graph) -> bool:
    """Whether a run's graph is that of hints, if they have one, and has all agents they name."""
    names = [*hints.steps_to_execution, *hints.next_agents]
    if hints.agent_id is not None:
        names.append(hints.agent_id)
    is_same = graph is None or run_graph.is_same_as(graph)
    return is_same and all(name in run_graph.nodes_of for name in names)
