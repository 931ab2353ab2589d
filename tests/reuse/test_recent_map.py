"""The map that keeps the values used last."""

from kvflow_jax.reuse.recent_map import RecentMap


def test_the_values_used_last_are_kept():
    dropped = []
    recent = RecentMap(3, lambda key, value: dropped.append((key, value)))
    for key in range(6):
        recent.put(key, str(key))
    assert (len(recent), dropped) == (6, [])
    assert recent.get(2) == "2"  # no use of it
    assert recent.use(1) == "1"
    assert dropped == [(0, "0"), (2, "2")]
    recent.put(6, "6")
    recent.put(7, "7")
    assert [key for key, _ in recent.newest()] == [7, 6, 1, 5, 4, 3]
    assert dict(recent.items()) == {key: str(key) for key in (3, 4, 5, 1, 6, 7)}
    assert 1 in recent
    assert 2 not in recent
    assert recent.use(2) is recent.get(2) is recent.pop(2) is None


def test_what_is_taken_out_is_not_dropped():
    dropped = []
    recent = RecentMap(2, lambda key, value: dropped.append(key))
    for key in "abc":
        recent.put(key, key)
    assert recent.pop("a") == "a"
    assert recent.pop("c") == "c"
    for key in "def":
        recent.put(key, key)
    assert dropped == ["b"]


def test_at_most_twice_the_capacity_is_kept():
    recent = RecentMap(50, lambda key, value: None)
    for key in range(10_000):
        recent.put(key, key)
        assert len(recent) <= 100
        assert all(
            recent.get(recent_key) is not None for recent_key in range(max(0, key - 49), key)
        )
