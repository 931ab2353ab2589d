"""The graph of a framework's application, on its way to an Agent Step Graph."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvflow_jax.clients.names import short_name
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.workflow import JoinMode, Workflow

logger = logging.getLogger(__name__)

START, END = "__start__", "__end__"

# Inputs of a node, and whether it waits for all of them or for any; None: as ``Workflow`` decides.
Group = tuple[Sequence[str], JoinMode | None]


@dataclass
class AgentGraph:
    """Nodes of an application and what follows what. ``START`` and ``END`` are nodes, too.

    Attributes:
        nodes: an ordered set; those between which edges lead.
        edges: (source, target) -> chance that the edge is taken once its source is done; None for
            one that is always taken. An edge with a chance is a choice of its source.
        joins: node -> whether it waits for all of its inputs or for any; others as
            ``Workflow`` decides.
        agents: node -> agent that it calls, of nodes that have not its name.
        gaps: what the application does not say of itself, one sentence each.
    """

    nodes: dict[str, None] = field(default_factory=dict)
    edges: dict[tuple[str, str], float | None] = field(default_factory=dict)
    joins: dict[str, JoinMode] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)

    def add_edge(self, source: str, target: str, chance: float | None = None) -> None:
        """Add an edge. Of two between the same nodes, chances add up, and always precedes them."""
        self.nodes.setdefault(source)
        self.nodes.setdefault(target)
        if (source, target) in self.edges:
            before = self.edges[source, target]
            chance = None if before is None or chance is None else min(1.0, before + chance)
        self.edges[source, target] = chance

    def add_choice(self, source: str, targets: Iterable[str]) -> None:
        """Add a choice among targets that are equally likely. A single target is no choice."""
        distinct = dict.fromkeys(targets)
        chance = 1.0 / len(distinct) if len(distinct) > 1 else None
        for target in distinct:
            self.add_edge(source, target, chance)

    def inputs_of(self, node: str) -> list[str]:
        return [source for source, target in self.edges if target == node]

    def split(self, node: str, groups: Sequence[Group]) -> None:
        """Let each of several groups of inputs run a node alone.

        A node waits in one way. So there is one for each group, with the same agent and the same
        outputs; the first keeps the name, and what are no inputs of the others.
        """
        (known, mode), *others = groups
        _set_join(self.joins, node, mode)
        seen, copies = set(known), []
        for number, (inputs, mode) in enumerate(others, 2):
            sources = [source for source in dict.fromkeys(inputs) if source not in seen]
            seen.update(sources)
            if not sources:
                continue
            copy = f"{node}#{number}"
            while copy in self.nodes:
                copy += "'"
            copies.append(copy)
            self.agents[copy] = self.agents.get(node, node)
            for source in sources:
                self.add_edge(source, copy, self.edges.pop((source, node)))
            _set_join(self.joins, copy, mode if len(sources) > 1 else None)
        targets = [(t, chance) for (s, t), chance in self.edges.items() if s == node]
        for target, chance in targets:
            for copy in copies:
                self.add_edge(copy, target, chance)
            if {*self.inputs_of(target)} == {node, *copies}:
                self.joins.setdefault(target, "any")

    def without(self, removed: Collection[str]) -> AgentGraph:
        """Return the graph without these nodes: what led to one leads to what follows it."""
        graph = replace(
            self, nodes=dict(self.nodes), edges=dict(self.edges), joins=dict(self.joins)
        )
        for node in self.nodes:
            if self.agents.get(node, node) in removed:
                graph._remove(node)
        return graph

    def _remove(self, node: str) -> None:
        if node not in self.nodes:
            return
        incoming = {s: c for (s, t), c in self.edges.items() if t == node != s}
        outgoing = {t: c for (s, t), c in self.edges.items() if s == node != t}
        mode = self.joins.pop(node, None)
        for target in outgoing:
            # What waits for this node alone now waits as this node did.
            if mode is not None and self.inputs_of(target) == [node]:
                self.joins[target] = mode
        del self.nodes[node]
        self.edges = {edge: chance for edge, chance in self.edges.items() if node not in edge}
        for source, before in incoming.items():
            for target, after in outgoing.items():
                always = before is None and after is None
                chance = (1.0 if before is None else before) * (1.0 if after is None else after)
                self.add_edge(source, target, None if always else chance)

    def to_json(self, first: str) -> str | None:
        """Return the JSON form of the Agent Step Graph, for a run whose first call is of ``first``.

        Where the application chooses with which node it begins, that is the one.

        Returns:
            None if the graph has no nodes, or more than a workflow may have.
        """
        begins = {
            short_name(target): chance
            for (source, target), chance in self.edges.items()
            if source == START and target != END
        }
        workflow = Workflow()
        try:
            for node in self.nodes:
                if node not in (START, END):
                    workflow.node(short_name(node), short_name(self.agents.get(node, node)))
            for (source, target), chance in self.edges.items():
                if source != START and target != END:
                    workflow.edge(
                        short_name(source), short_name(target), chance is not None, chance
                    )
            for node, mode in self.joins.items():
                workflow.join(short_name(node), mode)
            is_known = begins.get(first) is not None
            for name, chance in begins.items():
                if chance is None or name == first or not is_known:
                    workflow.entry(name)
        except InvalidRequestError as error:
            logger.warning("the graph is not sent: %s", error)
            return None
        return json.dumps(workflow.to_dict(), separators=(",", ":")) if workflow.nodes else None


def _set_join(joins: dict[str, JoinMode], node: str, mode: JoinMode | None) -> None:
    if mode is not None:
        joins[node] = mode
