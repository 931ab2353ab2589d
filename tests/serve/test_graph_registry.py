from __future__ import annotations

from kvflow_jax.serve.graph_registry import GraphRegistry


def test_the_registry_is_bounded_in_bytes() -> None:
    graphs = GraphRegistry(max_bytes=10)
    assert graphs.put(("", "a"), b"x" * 6) == []
    assert graphs.put(("", "a"), b"x" * 8) == []
    assert graphs.put(("", "b"), b"x" * 2) == []
    assert graphs.put(("", "c"), b"x") == [("", "a")]
    assert graphs.put(("", "d"), b"x" * 20) == [("", "b"), ("", "c")]
    assert graphs.get(("", "d")) == b"x" * 20  # one is kept however large
    assert graphs.remove(("", "d"))
    assert not graphs.remove(("", "d"))
