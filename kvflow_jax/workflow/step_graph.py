"""The Agent Step Graph: an immutable graph, and the state of each run of it.

The steps-to-execution of a node (KVFlow, arXiv 2507.07400) are the least number of steps before it
can run. A running or ready node is at 0; a node that waits for all of its inputs is one step after
the last unsatisfied one, a node that waits for any is one step after the first. As every step costs
the same, the least fixpoint consists of the levels of a breadth-first search with a counter of
unsatisfied inputs at each node (Knuth 1977, superior functions).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from kvflow_jax.errors import IntegrityError

# In larger graphs, a call that is not due is assigned to the first of its agent's nodes, not to the
# nearest: that would need the steps of all nodes.
MAX_COMPARED = 1024  # nodes and edges
NEVER = 1 << 30  # steps of a node that cannot run any more
# Of a graph in memory, beside the names of its nodes and the sets of their edges.
_NODE_BYTES, _EDGE_BYTES = 240, 150


@dataclass(frozen=True, slots=True)
class Edge:
    """A dependency between two nodes, by name; ``probability`` as declared, None if it was not."""

    source: str
    target: str
    conditional: bool = False
    probability: float | None = None


# Fields of a graph from which the others follow.
_DECLARED = ("names", "agents", "sources", "targets", "likelihoods", "needs_all", "entries")


@dataclass(frozen=True, eq=False)
class Graph:
    """A frozen workflow. Nodes and edges are numbered from 0 in the order of declaration.

    Graphs compare by identity, so they are cheap keys.

    Args:
        names: of each node.
        agents: agent that each node calls.
        nodes_of: agent -> its nodes, ascending.
        sources: source node of each edge.
        targets: target node of each edge.
        likelihoods: probability that each edge is taken once its source is done; 1 if
            unconditional.
        incoming: edges into each node.
        outgoing: (edge, target) of the edges out of each node.
        choices: conditional edges out of each node.
        needs_all: whether each node waits for all of its inputs; False if it has none.
        num_needed: number of inputs that each node waits for.
        entries: nodes that are ready when a run begins.
    """

    names: tuple[str, ...]
    agents: tuple[str, ...]
    nodes_of: Mapping[str, tuple[int, ...]]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    likelihoods: tuple[float, ...]
    incoming: tuple[frozenset[int], ...]
    outgoing: tuple[tuple[tuple[int, int], ...], ...]
    choices: tuple[frozenset[int], ...]
    needs_all: tuple[bool, ...]
    num_needed: tuple[int, ...]
    entries: frozenset[int]

    def is_same_as(self, other: Graph) -> bool:
        """Whether another graph declares the same nodes, edges, joins and entries."""
        return self is other or all(
            getattr(self, name) == getattr(other, name) for name in _DECLARED
        )

    @property
    def num_parts(self) -> int:
        """Nodes and edges, each of which a search of the graph visits."""
        return len(self.names) + len(self.sources)

    @cached_property
    def num_bytes(self) -> int:
        """Estimate of its memory in bytes."""
        parts = _NODE_BYTES * len(self.names) + _EDGE_BYTES * len(self.sources)
        return parts + sum(map(sys.getsizeof, (*self.names, *self.incoming, *self.choices)))

    @classmethod
    def build(
        cls,
        agent_of: Mapping[str, str],
        edges: Collection[Edge],
        any_joins: Collection[str],
        entries: Iterable[str],
    ) -> Graph:
        """Number the nodes of ``agent_of`` (name -> agent) and the edges between them.

        Args:
            any_joins: names of the nodes that wait for any of their inputs.
        """
        number = {name: node for node, name in enumerate(agent_of)}
        nodes_of: dict[str, list[int]] = {}
        for name, agent in agent_of.items():
            nodes_of.setdefault(agent, []).append(number[name])
        incoming: list[list[int]] = [[] for _ in number]
        outgoing: list[list[tuple[int, int]]] = [[] for _ in number]
        choices: list[list[int]] = [[] for _ in number]
        for i, edge in enumerate(edges):
            source, target = number[edge.source], number[edge.target]
            incoming[target].append(i)
            outgoing[source].append((i, target))
            if edge.conditional:
                choices[source].append(i)
        needs_all = [
            bool(inputs) and name not in any_joins
            for name, inputs in zip(agent_of, incoming, strict=True)
        ]
        return cls(
            names=tuple(agent_of),
            agents=tuple(agent_of.values()),
            nodes_of={agent: tuple(nodes) for agent, nodes in nodes_of.items()},
            sources=tuple(number[edge.source] for edge in edges),
            targets=tuple(number[edge.target] for edge in edges),
            likelihoods=_likelihoods(edges),
            incoming=tuple(map(frozenset, incoming)),
            outgoing=tuple(map(tuple, outgoing)),
            choices=tuple(map(frozenset, choices)),
            needs_all=tuple(needs_all),
            num_needed=tuple(
                len(inputs) if is_all else 1
                for inputs, is_all in zip(incoming, needs_all, strict=True)
            ),
            entries=frozenset(number[name] for name in entries),
        )


def _likelihoods(edges: Collection[Edge]) -> tuple[float, ...]:
    """Return the probability of each edge.

    Choices of a source without a probability share equally what its other choices leave.
    """
    labelled: dict[str, float] = {}
    num_unlabelled: Counter[str] = Counter()
    for edge in edges:
        if edge.conditional and edge.probability is None:
            num_unlabelled[edge.source] += 1
        elif edge.conditional and edge.probability is not None:
            labelled[edge.source] = labelled.get(edge.source, 0.0) + edge.probability
    likelihoods = []
    for edge in edges:
        if not edge.conditional:
            likelihoods.append(1.0)
        elif edge.probability is not None:
            likelihoods.append(edge.probability)
        else:
            rest = max(0.0, 1.0 - labelled.get(edge.source, 0.0))
            likelihoods.append(rest / num_unlabelled[edge.source])
    return tuple(likelihoods)


class RunState:
    """The state of one run of a graph, as it follows from the calls of its agents.

        waiting ──inputs satisfied──▶ ready ──start──▶ running ──finish──▶ outputs satisfied
                                        ▲                 │
                                        └─────abandon─────┘

    An edge is satisfied from the end of its source until the start of its target. The end of a node
    satisfies all of its choices, as any may be taken; the first target to start makes the choice
    and revokes the others. The state is immutable and mostly shared with the graph, so runs are
    small.
    """

    __slots__ = ("_forced", "_running", "_satisfied", "graph")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._running: tuple[
            int, ...
        ] = ()  # nodes in the order of their starts, once for each call
        self._forced = graph.entries  # nodes that are ready whatever their inputs
        self._satisfied: frozenset[int] = frozenset()  # edges

    @property
    def running(self) -> tuple[int, ...]:
        """Nodes with calls in progress, in the order of their starts, once for each call."""
        return self._running

    @property
    def ready(self) -> tuple[int, ...]:
        """Nodes that may start now, ascending."""
        targets = {self.graph.targets[edge] for edge in self._satisfied}
        return tuple(sorted(self._forced.union(filter(self._is_ready, targets))))

    @property
    def is_over(self) -> bool:
        """Whether no node is running or ready."""
        return not self._running and not self.ready

    @property
    def key(self) -> Hashable:
        """A key of the state: equal keys of one graph imply equal steps and probabilities."""
        return self._satisfied, self._forced, tuple(sorted(self._running))

    @property
    def num_bytes(self) -> int:
        """Its memory in bytes, without that of the graph."""
        own = (self, self._running, self._satisfied)
        return sum(map(sys.getsizeof, own)) + (
            0 if self._forced is self.graph.entries else sys.getsizeof(self._forced)
        )

    def start(self, agent: str) -> bool:
        """Start a call of an agent: its first ready node, else the one with the fewest steps.

        A node that is not ready starts all the same, as the caller knows better.

        Returns:
            False for an agent that the graph does not know; nothing changes.
        """
        nodes = self.graph.nodes_of.get(agent)
        if nodes is None:
            return False
        node = self._select(nodes)
        self._satisfied -= self._consumed_by(node)
        self._forced -= {node}
        self._running += (node,)
        return True

    def finish(self, agent: str) -> bool:
        """Finish the longest running call of an agent: the outputs of its node are satisfied.

        Returns:
            False if the agent is not running; nothing changes.
        """
        node = self._stop(agent)
        if node is None:
            return False
        self._satisfied = self._satisfied.union(edge for edge, _ in self.graph.outgoing[node])
        return True

    def abandon(self, agent: str) -> bool:
        """Abort the longest running call of an agent: its node is ready again.

        Returns:
            False if the agent is not running; nothing changes.
        """
        node = self._stop(agent)
        if node is None:
            return False
        self._forced |= {node}
        return True

    def advance(self, completed: Iterable[str] = (), running: Iterable[str] = ()) -> list[str]:
        """Apply progress that a caller reports.

        Args:
            completed: agents of completed calls, in order. An agent that was not running starts
                and finishes at once.
            running: agents of calls in progress, once for each call. Calls that are known already
                do not start again, and calls that are not named do not end.

        Returns:
            The agents that the graph does not know; they change nothing.
        """
        unknown = []
        for agent in completed:
            if self.finish(agent):
                continue
            if self.start(agent):
                self.finish(agent)
            else:
                unknown.append(agent)
        known = Counter(self.graph.agents[node] for node in self._running)
        for agent in running:
            if known[agent]:
                known[agent] -= 1
            elif not self.start(agent):
                unknown.append(agent)
        return unknown

    def steps(self) -> tuple[int, ...]:
        """Return the steps-to-execution of each node, else ``NEVER``, in O(nodes + edges)."""
        graph, satisfied = self.graph, self._satisfied
        steps = [NEVER] * len(graph.names)
        num_missing = list(graph.num_needed)
        for node in self._running:
            steps[node] = 0
        for node in self._forced:
            steps[node] = 0
        for edge in satisfied:
            node = graph.targets[edge]
            num_missing[node] -= 1
            if not num_missing[node]:
                steps[node] = 0
        level = [node for node, distance in enumerate(steps) if not distance]
        distance = 0
        while level:
            distance += 1
            next_level = []
            for source in level:
                for edge, node in graph.outgoing[source]:
                    if steps[node] == NEVER and edge not in satisfied:
                        num_missing[node] -= 1
                        if not num_missing[node]:
                            steps[node] = distance
                            next_level.append(node)
            level = next_level
        return tuple(steps)

    def agent_steps(self) -> dict[str, int]:
        """Return the steps-to-execution of each agent: the least of its nodes, else ``NEVER``."""
        steps = self.steps()
        return {
            agent: min([steps[node] for node in nodes])
            for agent, nodes in self.graph.nodes_of.items()
        }

    def probabilities(self) -> dict[int, float]:
        """Return the probability that each node at 0 or 1 steps runs then; others are left out.

        Choices of different sources are assumed to be independent.
        """
        steps = self.steps()
        now = {
            node: self._probability(node, {}) for node, distance in enumerate(steps) if not distance
        }
        return now | {
            node: self._probability(node, now)
            for node, distance in enumerate(steps)
            if distance == 1
        }

    def check_integrity(self) -> None:
        """Raise IntegrityError unless of each source all choices are satisfied, or none."""
        for node, choices in enumerate(self.graph.choices):
            if not choices.isdisjoint(self._satisfied) and not choices <= self._satisfied:
                raise IntegrityError(
                    f"only some choices of {self.graph.names[node]!r} are satisfied"
                )

    def _is_ready(self, node: int) -> bool:
        if node in self._forced:
            return True
        inputs = self.graph.incoming[node]
        if self.graph.needs_all[node]:
            return inputs <= self._satisfied
        return not inputs.isdisjoint(self._satisfied)

    def _select(self, nodes: tuple[int, ...]) -> int:
        """Return which of an agent's nodes its next call runs."""
        for node in nodes:
            if self._is_ready(node):
                return node
        if len(nodes) == 1 or self.graph.num_parts > MAX_COMPARED:
            return nodes[0]
        return min(nodes, key=self.steps().__getitem__)

    def _consumed_by(self, node: int) -> frozenset[int]:
        """Return the edges that the start of a node consumes: its inputs and their alternatives."""
        graph = self.graph
        inputs = graph.incoming[node]
        alternatives = [
            choices
            for edge in inputs & self._satisfied
            if edge in (choices := graph.choices[graph.sources[edge]])
        ]
        return inputs.union(*alternatives)

    def _stop(self, agent: str) -> int | None:
        """End the longest running call of an agent; return its node, None if there is none."""
        for i, node in enumerate(self._running):
            if self.graph.agents[node] == agent:
                self._running = self._running[:i] + self._running[i + 1 :]
                return node
        return None

    def _probability(self, node: int, before: Mapping[int, float]) -> float:
        """Return the probability that a node runs, given those of the nodes ``before`` it."""
        if node in self._forced or node in self._running:
            return 1.0
        graph = self.graph
        probabilities = [
            graph.likelihoods[edge]
            * (1.0 if edge in self._satisfied else before.get(graph.sources[edge], 0.0))
            for edge in graph.incoming[node]
        ]
        if graph.needs_all[node]:
            return math.prod(probabilities)
        return 1.0 - math.prod(1.0 - probability for probability in probabilities)
