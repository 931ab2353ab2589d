"""The Agent Step Graph at work: an immutable graph, and where each run of it stands.

Steps-to-execution (KVFlow, arXiv 2507.07400) is how many steps must pass before a node can
run at the earliest. A node that is running or ready is at 0; one that waits for all of its inputs
is one step after the last of those still missing, one that waits for any is one step after the
first. Where every step costs the same, the least such values are levels of a breadth-first walk
with a counter of missing inputs at each node (Knuth 1977, superior functions).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

from kvflow_jax.errors import IntegrityError

MAX_COMPARED = 512  # in larger graphs which of an agent's nodes is nearest is not asked
NEVER = 1 << 30  # steps of a node that cannot be reached from where the run stands


@dataclass(frozen=True, slots=True)
class Edge:
    """One dependency, by node names. ``probability`` is the user's, None where unlabelled."""

    source: str
    target: str
    conditional: bool = False
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A frozen workflow. Nodes and edges are numbered from 0 in the order they were declared.

    Graphs compare by identity, so that they are cheap keys.

    Args:
        names: of each node.
        agents: whom each node calls.
        nodes_of: agent -> its nodes, ascending.
        sources: node of each edge.
        targets: node of each edge.
        likelihoods: of each edge, that it is taken once its source is done; 1 if unconditional.
        incoming: edges into each node.
        outgoing: (edge, target) of the edges out of each node.
        choices: the conditional ones of them.
        needs_all: of each node, whether it waits for all of its inputs; false where it has none.
        num_needed: inputs that each node waits for.
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
            any_joins: names of the nodes that wait for any one of their inputs.
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
                len(inputs) if all_of_them else 1
                for inputs, all_of_them in zip(incoming, needs_all, strict=True)
            ),
            entries=frozenset(number[name] for name in entries),
        )


def _likelihoods(edges: Collection[Edge]) -> tuple[float, ...]:
    """Unlabelled choices of a source share equally what its labelled ones leave."""
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
    """Where one run of a graph stands, told by the calls of its agents.

        waiting ──its inputs arrive──▶ ready ──start──▶ running ──finish──▶ its outputs arrive
                                         ▲                 │
                                         └─────abandon─────┘

    An edge has arrived once its source finished, until its target starts. Conditional edges all
    arrive, as any may be taken; the first target to start is the choice and takes back the others.
    What is held is immutable and mostly shared with the graph, so runs are small.
    """

    __slots__ = ("_arrived", "_primed", "_running", "graph")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._running: tuple[int, ...] = ()  # nodes in the order they started, once for each call
        self._primed = graph.entries  # nodes that are ready whatever has arrived
        self._arrived: frozenset[int] = frozenset()  # edges

    @property
    def running(self) -> tuple[int, ...]:
        """Nodes with a call in progress, in the order they started, once for each call."""
        return self._running

    @property
    def ready(self) -> tuple[int, ...]:
        """Nodes that may start now, ascending."""
        targets = {self.graph.targets[edge] for edge in self._arrived}
        return tuple(sorted(self._primed.union(filter(self._is_ready, targets))))

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing can run any more."""
        return not self._running and not self.ready

    @property
    def key(self) -> Hashable:
        """Equal keys of one graph mean equal steps and probabilities."""
        return self._arrived, self._primed, tuple(sorted(self._running))

    def start(self, agent: str) -> bool:
        """A call of an agent began: at its first ready node, else at the one nearest to ready.

        A node that is not ready starts all the same, for the client knows better.

        Returns:
            False for an agent that the graph does not know; nothing changes.
        """
        nodes = self.graph.nodes_of.get(agent)
        if nodes is None:
            return False
        node = self._next_of(nodes)
        self._arrived -= self._spent_by(node)
        self._primed -= {node}
        self._running += (node,)
        return True

    def finish(self, agent: str) -> bool:
        """The call of an agent that has run longest is done: its outputs arrive.

        Returns:
            False if the agent is not running; nothing changes.
        """
        node = self._stop(agent)
        if node is None:
            return False
        self._arrived = self._arrived.union(edge for edge, _ in self.graph.outgoing[node])
        return True

    def abandon(self, agent: str) -> bool:
        """The call of an agent that has run longest was aborted: its node is ready again.

        Returns:
            False if the agent is not running; nothing changes.
        """
        node = self._stop(agent)
        if node is None:
            return False
        self._primed |= {node}
        return True

    def advance(self, completed: Iterable[str] = (), running: Iterable[str] = ()) -> list[str]:
        """Take in progress that a client reports by itself.

        Args:
            completed: agents of calls that are done, in that order. One that was not known to
                run is taken to have started and finished just now.
            running: agents of calls in progress, once for each. Those known to run stay as they
                are, as do others that are not named.

        Returns:
            Agents that the graph does not know; they change nothing.
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
        """Steps-to-execution of each node, in O(nodes + edges); ``NEVER`` where none is known."""
        graph, arrived = self.graph, self._arrived
        steps = [NEVER] * len(graph.names)
        missing = list(graph.num_needed)
        for node in self._running:
            steps[node] = 0
        for node in self._primed:
            steps[node] = 0
        for edge in arrived:
            node = graph.targets[edge]
            missing[node] -= 1
            if not missing[node]:
                steps[node] = 0
        level = [node for node, distance in enumerate(steps) if not distance]
        distance = 0
        while level:
            distance += 1
            following = []
            for source in level:
                for edge, node in graph.outgoing[source]:
                    if steps[node] == NEVER and edge not in arrived:
                        missing[node] -= 1
                        if not missing[node]:
                            steps[node] = distance
                            following.append(node)
            level = following
        return tuple(steps)

    def agent_steps(self) -> dict[str, int]:
        """Steps-to-execution of every agent, the least of its nodes; ``NEVER`` included."""
        steps = self.steps()
        return {
            agent: min([steps[node] for node in nodes])
            for agent, nodes in self.graph.nodes_of.items()
        }

    def probabilities(self) -> dict[int, float]:
        """How likely each node at 0 or 1 steps is to run then; others are left out.

        Sources are taken to choose independently of each other.
        """
        steps = self.steps()
        now = {node: self._chance(node, {}) for node, distance in enumerate(steps) if not distance}
        return now | {
            node: self._chance(node, now) for node, distance in enumerate(steps) if distance == 1
        }

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the choices of each source arrived all or not at all."""
        for node, choices in enumerate(self.graph.choices):
            if not choices.isdisjoint(self._arrived) and not choices <= self._arrived:
                raise IntegrityError(f"a choice of {self.graph.names[node]!r} is half taken back")

    def _is_ready(self, node: int) -> bool:
        if node in self._primed:
            return True
        inputs = self.graph.incoming[node]
        if self.graph.needs_all[node]:
            return inputs <= self._arrived
        return not inputs.isdisjoint(self._arrived)

    def _next_of(self, nodes: tuple[int, ...]) -> int:
        """Which of an agent's nodes its next call is."""
        for node in nodes:
            if self._is_ready(node):
                return node
        if len(nodes) == 1 or len(self.graph.names) > MAX_COMPARED:
            return nodes[0]
        return min(nodes, key=self.steps().__getitem__)

    def _spent_by(self, node: int) -> frozenset[int]:
        """Edges that the start of a node takes back: its inputs, and the roads not taken."""
        graph = self.graph
        inputs = graph.incoming[node]
        rivals = [
            choices
            for edge in inputs & self._arrived
            if edge in (choices := graph.choices[graph.sources[edge]])
        ]
        return inputs.union(*rivals)

    def _stop(self, agent: str) -> int | None:
        """End the call of an agent that has run longest; its node."""
        for i, node in enumerate(self._running):
            if self.graph.agents[node] == agent:
                self._running = self._running[:i] + self._running[i + 1 :]
                return node
        return None

    def _chance(self, node: int, before: Mapping[int, float]) -> float:
        """That a node runs, given how likely the nodes ``before`` it are to."""
        if node in self._primed or node in self._running:
            return 1.0
        graph = self.graph
        chances = [
            graph.likelihoods[edge]
            * (1.0 if edge in self._arrived else before.get(graph.sources[edge], 0.0))
            for edge in graph.incoming[node]
        ]
        if graph.needs_all[node]:
            return math.prod(chances)
        return 1.0 - math.prod(1.0 - chance for chance in chances)
