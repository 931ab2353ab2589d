"""The model of order one."""

from kvflow_jax.reuse.context_tree import ContextTree
from kvflow_jax.reuse.first_order import FirstOrder


def test_only_the_last_agent_counts():
    calls = ["a", "x", "b", "c", "x", "d"] * 40
    first, tree = FirstOrder(), ContextTree()
    for number in range(1, len(calls)):
        first.observe(calls[:number], calls[number], 1.0)
        tree.observe(calls[:number], calls[number], 1.0)
    assert first.forecast(["a", "x"]) == first.forecast(["c", "x"])
    assert {"b", "d"} <= first.forecast(["x"]).keys()
    assert tree.expects(["a", "x"]) == "b"
    assert tree.expects(["c", "x"]) == "d"
    again = FirstOrder.from_rows(first.rows())
    assert again.forecast(["x"]).keys() == first.forecast(["x"]).keys()
