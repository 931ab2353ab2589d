"""What is likely not meant in the JSON form of a step graph, though it can be run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kvflow_jax.workflow.step_graph import NEVER, Graph, RunState
from kvflow_jax.workflow.workflow import Workflow

MAX_WARNINGS = 20
_KNOWN = {"name", "nodes", "edges", "joins", "entries"}


def warnings_of(data: Mapping[str, Any], workflow: Workflow, graph: Graph) -> list[str]:
    """At most MAX_WARNINGS lines.

    Args:
        data: a form from which ``workflow`` was read, and ``graph`` frozen.
    """
    found = [f"unknown field {json.dumps(str(key))}" for key in data if key not in _KNOWN]
    named = {one if isinstance(one, str) else one.get("id") for one in data.get("nodes") or ()}
    if named:
        found += [
            f"{json.dumps(node)} is not among nodes, and was added to them"
            for node in workflow.nodes
            if node not in named
        ]
    pairs = Counter((one["source"], one["target"]) for one in data.get("edges") or ())
    found += [
        f"the edge {json.dumps(list(pair))} is given {count} times: the last one holds"
        for pair, count in pairs.items()
        if count > 1
    ]
    chances: dict[str, float] = {}
    for edge in workflow.edges:
        if edge.conditional:
            chances[edge.source] = chances.get(edge.source, 0.0) + (edge.probability or 0.0)
    found += [
        f"the choices of {json.dumps(source)} have probabilities of {chance:g} in all"
        for source, chance in chances.items()
        if chance > 1.0 + 1e-6
    ]
    if not workflow.has_entry:
        found.append(
            f"no node is without inputs: a run begins at {json.dumps(workflow.entries[0])}"
        )
    found += [
        f"{json.dumps(name)} can never run: its inputs do not all come"
        for name, steps in zip(graph.names, RunState(graph).steps(), strict=True)
        if steps == NEVER
    ]
    return found[:MAX_WARNINGS]
