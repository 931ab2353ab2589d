"""Names of readers."""

from kvflow_jax.control.readers import AgentReader, KeptReader, PrefixReader, SessionReader


def test_a_prefix_names_its_agent():
    assert PrefixReader("tenant", "coder", 7).of_agent == AgentReader("tenant", "coder")


def test_readers_of_different_kinds_differ_in_a_dict():
    readers = {AgentReader("t", "x"): 0, SessionReader("t", "x"): 1, KeptReader("t", "x", None): 2}
    assert len(readers) == 3
    assert len({PrefixReader("t", "x", i) for i in (0, 1, 0)}) == 2
