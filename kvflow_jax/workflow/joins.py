"""Joins that wait for any input by default, because their inputs exclude each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from kvflow_jax.workflow.step_graph import Edge

# Edges followed for one graph, about 0.1 us each. A graph that needs more, which takes many
# joins in many edges, is not analyzed: only its declared joins wait for any input.
MAX_FOLLOWED = 250_000


def exclusive_joins(edges: Collection[Edge], entries: Iterable[str]) -> set[str]:
    """Return the nodes with several inputs of which not all can be satisfied.

    That is so if an input is a choice of its source; if an input is reached from the node itself,
    through a loop, and another is not; or if inputs follow different choices. What follows a choice
    is determined in the graph without the node, so that a loop around everything does not make all
    nodes follow all choices.

    Returns:
        No nodes for a graph that takes more than ``MAX_FOLLOWED`` edges to analyze.
    """
    inputs: dict[str, list[Edge]] = {}
    targets: dict[str, list[str]] = {}
    for edge in edges:
        inputs.setdefault(edge.target, []).append(edge)
        targets.setdefault(edge.source, []).append(edge.target)
    # Bit 0 is that of the entries; all choices of one target share another.
    label_of = dict.fromkeys(edge.target for edge in edges if edge.conditional)
    starts = [(entry, 1) for entry in entries]
    starts += [(target, 2 << i) for i, target in enumerate(label_of)]
    exclusive, num_left = set[str](), MAX_FOLLOWED
    for node, incoming in inputs.items():
        if len(incoming) < 2:
            continue
        if any(edge.conditional for edge in incoming):
            exclusive.add(node)
            continue
        labels, num_followed = _labels(targets, starts, node, num_left)
        num_left -= num_followed
        if num_left < 0:
            return set()
        if len({labels.get(edge.source, 0) for edge in incoming}) > 1:
            exclusive.add(node)
    return exclusive


def _labels(
    targets: dict[str, list[str]],
    starts: Sequence[tuple[str, int]],
    excluded: str,
    max_followed: int,
) -> tuple[dict[str, int], int]:
    """Return which starts reach each node on paths that do not pass ``excluded``.

    Args:
        starts: nodes, each with the bit that marks what it reaches, itself included.

    Returns:
        Node -> bits, and the number of starts and edges that were followed. The search ends once
        there are more than ``max_followed``.
    """
    labels: dict[str, int] = {}
    for start, bit in starts:
        if start != excluded:
            labels[start] = labels.get(start, 0) | bit
    num_followed = len(starts)
    queue, queued = deque(labels), set(labels)
    while queue and num_followed <= max_followed:
        source = queue.popleft()
        queued.remove(source)
        reached, behind = labels[source], targets.get(source, ())
        num_followed += len(behind)
        for node in behind:
            before = labels.get(node, 0)
            if before | reached != before and node != excluded:
                labels[node] = before | reached
                if node not in queued:
                    queued.add(node)
                    queue.append(node)
    return labels, num_followed
