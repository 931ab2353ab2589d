"""The store of step graphs by their JSON form."""

import json
import threading

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.graph_store import GraphStore


def test_equal_graphs_are_one_object_and_old_ones_are_dropped():
    store = GraphStore(max_parts=6)  # a graph of two nodes and an edge counts 4
    first = store.graph({"edges": [{"source": "a", "target": "b"}], "name": "x"})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is first
    store.graph({"nodes": ["other"]})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is first
    store.graph({"nodes": ["another"]})
    assert len(store) == 2
    store.graph({"nodes": ["c", "d", "e", "f", "g", "h"]})
    assert len(store) == 1
    for invalid in (5, {"nodes": [5]}, {"nodes": {1, 2}}):
        with pytest.raises(InvalidRequestError):
            store.graph(invalid)
    assert len(store) == 1


def test_threads_that_ask_at_the_same_time_get_one_graph():
    store, found = GraphStore(), []
    data = {"edges": [{"source": f"n{i}", "target": f"n{i + 1}"} for i in range(300)]}
    start = threading.Barrier(4)

    def ask():
        start.wait()
        found.append(store.graph(json.loads(json.dumps(data))))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
