"""Warnings of likely mistakes in the JSON form of a step graph that can be run all the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from kvflow_jax.workflow.step_graph import NEVER, Graph, RunState
from kvflow_jax.workflow.workflow import MAX_ID_LEN, Workflow

MAX_WARNINGS = 20
_KNOWN_FIELDS = {"name", "nodes", "edges", "joins", "entries"}


def warnings_of(data: Mapping[str, Any], workflow: Workflow, graph: Graph) -> list[str]:
    """Return at most ``MAX_WARNINGS`` warnings, one line each.

    Args:
        data: the form that ``workflow`` was read from.
        graph: the frozen ``workflow``.
    """
    unknown = islice((key for key in data if key not in _KNOWN_FIELDS), MAX_WARNINGS)
    found = [f"unknown field {json.dumps(str(key)[:MAX_ID_LEN])}" for key in unknown]
    found += _undeclared_nodes(data, workflow)
    found += _repeated_edges(data)
    found += _improbable_choices(workflow)
    if not workflow.has_entry:
        found.append(
            f"every node has inputs, and no entry is declared: runs begin at "
            f"{json.dumps(workflow.entries[0])}"
        )
    found += [
        f"{json.dumps(name)} can never run: not all of its inputs can be satisfied"
        for name, steps in zip(graph.names, RunState(graph).steps(), strict=True)
        if steps == NEVER
    ]
    return found[:MAX_WARNINGS]


def _undeclared_nodes(data: Mapping[str, Any], workflow: Workflow) -> list[str]:
    """Return a warning for each node that is used and not declared, if others are declared."""
    declared = {
        node if isinstance(node, str) else node.get("id") for node in data.get("nodes") or ()
    }
    if not declared:
        return []
    return [
        f"{json.dumps(node)} is not among nodes, and was added to them"
        for node in workflow.nodes
        if node not in declared
    ]


def _repeated_edges(data: Mapping[str, Any]) -> list[str]:
    """Return a warning for each edge that occurs several times."""
    pairs = Counter((edge["source"], edge["target"]) for edge in data.get("edges") or ())
    return [
        f"the edge {json.dumps(list(pair))} occurs {count} times: the last one counts"
        for pair, count in pairs.items()
        if count > 1
    ]


def _improbable_choices(workflow: Workflow) -> list[str]:
    """Return a warning for each node whose choices have probabilities of more than 1 in all."""
    total: dict[str, float] = {}
    for edge in workflow.edges:
        if edge.conditional:
            total[edge.source] = total.get(edge.source, 0.0) + (edge.probability or 0.0)
    return [
        f"the probabilities of the choices of {json.dumps(source)} sum to {probability:g}"
        for source, probability in total.items()
        if probability > 1.0 + 1e-6
    ]
