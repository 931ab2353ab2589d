"""A cache of step graphs by their JSON form: requests that carry equal graphs share one object."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

MAX_PARTS = 200_000


class GraphStore:
    """Freezes step graphs and keeps the most recently used ones. Thread-safe.

    Args:
        max_parts: capacity; a graph counts 1 and its nodes and edges.
    """

    def __init__(self, max_parts: int = MAX_PARTS) -> None:
        self._max_parts = max_parts
        self._lock = threading.Lock()
        self._graphs: OrderedDict[bytes, Graph] = OrderedDict()  # least recently used first
        self._num_parts = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def graph(self, data: Mapping[str, object]) -> Graph:
        """Return the graph of a JSON form; equal forms return the same object.

        Args:
            data: see ``Workflow.from_dict``.

        Raises:
            InvalidRequestError: not the form of a step graph.
        """
        key = _digest(data)
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                self._graphs.move_to_end(key)
                return graph
        # Without the lock: a large graph takes milliseconds. Another thread may add it meanwhile.
        built = Workflow.from_dict(data).freeze()
        with self._lock:
            graph = self._graphs.setdefault(key, built)
            if graph is built:
                self._num_parts += _num_parts(built)
                while self._num_parts > self._max_parts and len(self._graphs) > 1:
                    _, oldest = self._graphs.popitem(last=False)
                    self._num_parts -= _num_parts(oldest)
        return graph


def _digest(data: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"a step graph must be JSON: {error}") from error
    return hashlib.sha256(text.encode()).digest()


def _num_parts(graph: Graph) -> int:
    return 1 + len(graph.names) + len(graph.sources)
