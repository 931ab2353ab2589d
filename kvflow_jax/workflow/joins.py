"""Joins that wait for any input by default, because their inputs exclude each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kvflow_jax.workflow.step_graph import Edge

# The cost grows with nodes times choices: in larger graphs, only declared joins wait for any input.
MAX_ANALYZED = 512  # nodes with outputs, and conditional edges


def exclusive_joins(edges: Collection[Edge], entries: Iterable[str]) -> set[str]:
    """Return the nodes with several inputs of which not all can be satisfied.

    That is so if an input is a choice of its source; if an input is reached from the node itself,
    through a loop, and another is not; or if inputs follow different choices. What follows a choice
    is determined in the graph without the node, so that a loop around everything does not make all
    nodes follow all choices.
    """
    inputs: dict[str, list[Edge]] = {}
    targets: dict[str, list[str]] = {}
    for edge in edges:
        inputs.setdefault(edge.target, []).append(edge)
        targets.setdefault(edge.source, []).append(edge.target)
    choices = [edge for edge in edges if edge.conditional]
    if len(targets) > MAX_ANALYZED or len(choices) > MAX_ANALYZED:
        return set()
    entries = list(entries)
    exclusive = set()
    for node, incoming in inputs.items():
        if len(incoming) < 2:
            continue
        sources = [edge.source for edge in incoming]
        before = _reachable(targets, [entry for entry in entries if entry != node], node)
        if (
            any(edge.conditional for edge in incoming)
            or len({source in before for source in sources}) > 1
            or _follow_different_choices(sources, choices, targets, node)
        ):
            exclusive.add(node)
    return exclusive


def _follow_different_choices(
    sources: list[str],
    choices: list[Edge],
    targets: Mapping[str, list[str]],
    node: str,
) -> bool:
    for choice in choices:
        if choice.target == node:
            continue
        behind = _reachable(targets, [choice.target], node)
        if len({source in behind for source in sources}) > 1:
            return True
    return False


def _reachable(targets: Mapping[str, list[str]], starts: list[str], excluded: str) -> set[str]:
    """Return the nodes on paths from ``starts``, inclusive, that do not pass ``excluded``."""
    reached, frontier = set(starts), list(starts)
    while frontier:
        for node in targets.get(frontier.pop(), ()):
            if node not in reached and node != excluded:
                reached.add(node)
                frontier.append(node)
    return reached
