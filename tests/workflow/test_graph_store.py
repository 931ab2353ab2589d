"""The store of step graphs by their JSON form."""

import json
import threading

import pytest

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.workflow import MAX_EDGES, MAX_NODES, Workflow


def test_equal_graphs_are_one_object_and_old_ones_are_dropped():
    small = Workflow().edge("a", "b").freeze().num_bytes + ENTRY_BYTES
    store = GraphStore(max_bytes=2 * small)
    first = store.graph({"edges": [{"source": "a", "target": "b"}], "name": "x"})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is first
    store.graph({"nodes": ["other"]})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is first
    store.graph({"nodes": ["another"]})
    assert len(store) == 2
    store.graph({"nodes": ["c", "d", "e", "f", "g", "h"]})
    assert len(store) == 1
    assert store.usage.num_evicted == 3
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


def test_tenants_share_no_graphs():
    store = GraphStore()
    assert store.graph({"nodes": ["a"]}, "t") is store.graph({"nodes": ["a"]}, "t")
    assert store.graph({"nodes": ["a"]}, "u") is not store.graph({"nodes": ["a"]}, "t")


@pytest.mark.parametrize(
    "invalid",
    [
        {"edges": [], "nodes": {"a": 1}},
        {"nodes": ["a"], "joins": [{"target": "a", "sources": 5}]},
        {"nodes": ["a"], "joins": [{"target": "a", "sources": [["b"]]}]},
        {"nodes": ["a"], "name": 10**5000},
        {"nodes": ["a"], "edges": [{"source": "a", "target": "a", "probability": 10**5000}]},
        {"nodes": ["a"], "entries": ["a"] * 10**6},
        {"nodes": ["a"], "joins": [{"target": "a", "sources": ["a"] * 30_000}] * MAX_NODES},
        {"nodes": ["a"], "edges": [{"source": "a", "target": "a"}] * (MAX_EDGES + 1)},
    ],
)
def test_an_invalid_form_is_refused_whatever_valid_one_is_known(invalid):
    store = GraphStore()
    for valid in (
        {},
        {"nodes": ["a"]},
        {"nodes": ["a"], "joins": [{"target": "a"}]},
        {"nodes": ["a"], "edges": [{"source": "a", "target": "a"}]},
    ):
        store.graph(valid)
    with pytest.raises(InvalidRequestError):
        store.graph(invalid)


def test_what_a_form_says_beside_the_graph_is_not_read():
    store = GraphStore()
    graph = store.graph({"edges": [{"source": "a", "target": "b"}]})
    junk = {"x": [[[{}]]] * 1000}
    same = {"edges": [{"source": "a", "target": "b", "conditional": None, **junk}], **junk}
    assert store.graph(same) is graph
    assert (
        store.graph({"edges": [{"source": "a", "target": "b", "conditional": True}]}) is not graph
    )


def test_graphs_that_requests_use_are_bounded_by_bytes(monkeypatch):
    num_bytes = Workflow().edge("a", "b").freeze().num_bytes
    monkeypatch.setattr("kvflow_jax.workflow.graph_store.MAX_USED_BYTES", 2 * num_bytes)
    store = GraphStore(max_bytes=1)

    def graph(name, tenant="t"):
        return store.graph({"edges": [{"source": "a", "target": "b"}], "name": name}, tenant)

    used = [graph(str(i)) for i in range(3)]
    with pytest.raises(InvalidRequestError, match="graphs of your requests"):
        graph("3")
    assert graph("2") is used[2]
    assert graph("3", "other") is not None
    del used[0]
    assert graph("3") is not None
