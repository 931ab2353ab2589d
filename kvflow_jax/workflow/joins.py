"""Which nodes of a workflow cannot be meant to wait for all of their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kvflow_jax.workflow.step_graph import Edge

# What is looked at grows with nodes times choices: beyond this, joins are as they are declared.
MAX_LOOKED_AT = 512


def exclusive_joins(edges: Collection[Edge], entries: Iterable[str]) -> set[str]:
    """Nodes with several inputs that cannot all arrive.

    One of them is a choice of its source; or one comes back in a loop, from behind the node, and
    another does not; or they follow different choices. What follows a choice is looked at as if
    the node were not there, so that a loop around everything does not make all follow all.
    """
    inputs: dict[str, list[Edge]] = {}
    following: dict[str, list[str]] = {}
    for edge in edges:
        inputs.setdefault(edge.target, []).append(edge)
        following.setdefault(edge.source, []).append(edge.target)
    choices = [edge for edge in edges if edge.conditional]
    if len(following) > MAX_LOOKED_AT or len(choices) > MAX_LOOKED_AT:
        return set()
    entries = list(entries)
    exclusive = set()
    for node, incoming in inputs.items():
        if len(incoming) < 2:
            continue
        sources = [edge.source for edge in incoming]
        before = _reached(following, [entry for entry in entries if entry != node], node)
        if (
            any(edge.conditional for edge in incoming)
            or len({source in before for source in sources}) > 1
            or _follow_different_choices(sources, choices, following, node)
        ):
            exclusive.add(node)
    return exclusive


def _follow_different_choices(
    sources: list[str],
    choices: list[Edge],
    following: Mapping[str, list[str]],
    node: str,
) -> bool:
    for choice in choices:
        if choice.target == node:
            continue
        behind = _reached(following, [choice.target], node)
        if len({source in behind for source in sources}) > 1:
            return True
    return False


def _reached(following: Mapping[str, list[str]], starts: list[str], without: str) -> set[str]:
    """Nodes on ways from ``starts``, themselves included, that do not pass one node."""
    reached, front = set(starts), list(starts)
    while front:
        for node in following.get(front.pop(), ()):
            if node not in reached and node != without:
                reached.add(node)
                front.append(node)
    return reached
