"""What is counted for tenants while it is referred to."""

from kvflow_jax.bounds.live_bytes import LiveBytes


class Value:
    pass


def test_values_count_for_their_tenants_while_they_live():
    live, one, other = LiveBytes(), Value(), Value()
    live.add("a", one, 3)
    live.add("a", other, 4)
    live.add("b", other, 4)
    again = one
    del one
    assert (live.num_bytes("a"), live.num_bytes("b"), live.num_bytes("c")) == (7, 4, 0)
    del again
    assert live.num_bytes("a") == 4
    del other
    assert (live.num_bytes("a"), live.num_bytes("b")) == (0, 0)
    assert not live._num_bytes
