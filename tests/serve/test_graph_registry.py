from __future__ import annotations

from kvflow_jax.serve.graph_registry import GraphRegistry


def test_the_registry_is_bounded_in_bytes() -> None:
    graphs = GraphRegistry(max_bytes=10)
    assert graphs.put(("", "a"), b"x" * 6) == []
    assert graphs.put(("", "a"), b"x" * 8) == []
    assert graphs.put(("", "b"), b"x" * 2) == []
    assert graphs.put(("", "c"), b"x") == [("", "a")]
    assert graphs.put(("", "d"), b"x" * 20) == [("", "b"), ("", "c")]
    assert graphs.get(("", "d")) == b"x" * 20  # the last graph is never evicted
    assert graphs.remove(("", "d"))
    assert not graphs.remove(("", "d"))


def test_names_are_those_of_one_tenant_oldest_registration_first() -> None:
    graphs = GraphRegistry()
    for key in (("t", "b"), ("u", "c"), ("t", "a"), ("t", "b")):
        graphs.put(key, b"{}")
    assert graphs.names("t") == ["a", "b"]
    assert graphs.names("u") == ["c"]
    assert graphs.get(("u", "a")) is None


def test_the_registry_is_bounded_in_graphs() -> None:
    graphs = GraphRegistry(max_graphs=2)
    evicted = [graphs.put(("", name), b"{}") for name in "abac"]
    assert evicted == [[], [], [], [("", "b")]]
