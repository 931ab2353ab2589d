from __future__ import annotations

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.serve.graph_registry import GraphRegistry


def test_a_tenants_registry_is_bounded_in_bytes() -> None:
    graphs = GraphRegistry(max_bytes=2 * ENTRY_BYTES + 10)
    assert graphs.put(("other", "a"), b"x", 5) == []
    assert graphs.put(("", "a"), b"x" * 2, 4) == []
    assert graphs.put(("", "a"), b"x" * 4, 4) == []
    assert graphs.put(("", "b"), b"x", 1) == []
    assert graphs.put(("", "c"), b"x", 0) == [("", "a")]
    assert graphs.put(("", "d"), b"x" * 20, 1000) == [("", "b"), ("", "c")]
    assert graphs.get(("", "d")) == b"x" * 20  # the last graph is never evicted
    assert graphs.get(("other", "a")) == b"x"
    assert graphs.remove(("", "d"))
    assert not graphs.remove(("", "d"))


def test_names_are_those_of_one_tenant_oldest_registration_first() -> None:
    graphs = GraphRegistry()
    for key in (("t", "b"), ("u", "c"), ("t", "a"), ("t", "b")):
        graphs.put(key, b"{}", 0)
    assert graphs.names("t") == ["a", "b"]
    assert graphs.names("u") == ["c"]
    assert graphs.get(("u", "a")) is None
