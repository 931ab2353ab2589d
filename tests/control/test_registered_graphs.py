"""Step graphs by tenant and name."""

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.control.registered_graphs import RegisteredGraphs
from kvflow_jax.workflow.hints import Hints
from tests.support.step_graphs import chain

GRAPH = chain("plan", "code").freeze()


def test_a_graph_is_found_by_its_tenant_and_name_only():
    graphs = RegisteredGraphs()
    graphs.register("t", "review", GRAPH)
    assert graphs.find("t", "review") == (GRAPH, True)
    assert graphs.find("other", "review") == (None, False)
    assert graphs.find("t", None) == (None, True)
    assert graphs.unregister("t", "review")
    assert not graphs.unregister("t", "review")
    assert graphs.find("t", "review") == (None, False)


def test_a_graph_in_the_hints_precedes_the_one_that_they_name():
    graphs = RegisteredGraphs()
    graphs.register("t", "review", chain("other").freeze())
    assert graphs.find_hinted("t", Hints(graph=GRAPH)) == (GRAPH, True)
    assert graphs.find_hinted("t", Hints(graph=GRAPH, graph_id="review")) == (GRAPH, False)
    graphs.register("t", "review", chain("plan", "code").freeze())
    assert graphs.find_hinted("t", Hints(graph=GRAPH, graph_id="review")) == (GRAPH, True)
    assert graphs.find_hinted("t", Hints(graph=GRAPH, graph_id="unknown")) == (GRAPH, False)
    assert graphs.find_hinted("t", Hints(graph_id="unknown")) == (None, False)
    assert graphs.find_hinted("t", Hints()) == (None, True)


def test_the_bytes_of_a_tenants_graphs_are_bounded():
    graphs = RegisteredGraphs(max_bytes=2 * (ENTRY_BYTES + GRAPH.num_bytes))
    graphs.register("other", "a", GRAPH)
    for name in ("a", "b"):
        graphs.register("t", name, GRAPH)
    assert graphs.find("t", "a").is_known  # used again
    graphs.register("t", "c", GRAPH)
    assert [graphs.find("t", name).is_known for name in "abc"] == [True, False, True]
    assert graphs.find("other", "a").is_known
    assert graphs.usage.num_evicted == 1
