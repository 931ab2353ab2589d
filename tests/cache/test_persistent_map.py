"""The persistent map behaves as a dict whose old versions stay unchanged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.persistent_map import EMPTY, PersistentMap


class Colliding:
    """Keys with equal hashes, which share one leaf."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colliding) and other.name == self.name


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-200, 200)), max_size=600))
def test_updates_are_those_of_a_dict_and_old_versions_stay_unchanged(operations):
    model: dict[int, int] = {}
    current: PersistentMap[int, int] = EMPTY
    versions = []
    for step, (is_set, key) in enumerate(operations):
        if is_set:
            model[key] = step
            current = current.set(key, step)
        elif key in model:
            del model[key]
            current = current.delete(key)
        else:
            with pytest.raises(KeyError):
                current.delete(key)
        if step % 50 == 0:
            versions.append((current, dict(model)))
    versions.append((current, model))
    for version, expected in versions:
        assert dict(version.items()) == expected
        assert len(version) == len(expected)
        assert all(version.get(k) == v for k, v in expected.items())


def test_many_keys_and_equal_hashes_are_found():
    many = PersistentMap({i: i for i in range(20_000)})
    assert len(many) == 20_000
    assert many.get(19_999) == 19_999
    assert many.get(20_000) is None
    colliding = PersistentMap({Colliding(i): i for i in range(200)})
    assert len(colliding) == 200
    assert colliding.get(Colliding(77)) == 77
    smaller = colliding.delete(Colliding(77))
    assert Colliding(77) not in smaller
    assert Colliding(77) in colliding


@settings(deadline=None)
@given(st.sets(st.integers(0, 3000), min_size=1), st.integers(0, 2**32))
def test_many_keys_are_removed_at_once(present, seed):
    before = PersistentMap({key: -key for key in present})
    ordered = sorted(present)
    removed = ordered[seed % len(ordered) :]
    after, values = before.pop_many(removed)
    assert values == [-key for key in removed]
    assert dict(after.items()) == {key: -key for key in present.difference(removed)}
    assert len(after) == len(present) - len(removed)
    assert len(before) == len(present)
    with pytest.raises(KeyError):
        before.pop_many([*removed, 3001])


def test_many_keys_of_equal_hashes_are_removed_at_once():
    colliding = PersistentMap({Colliding(i): i for i in range(200)})
    rest, _ = colliding.pop_many([Colliding(i) for i in range(100)])
    assert sorted(rest.values()) == list(range(100, 200))


@pytest.mark.parametrize("num_keys", [1, 2, 40, 60, 2000])
def test_the_last_of_many_keys_can_be_deleted(num_keys):
    current = PersistentMap({i: i for i in range(num_keys)})
    for key in range(num_keys):
        current = current.delete(key)
    assert current is EMPTY
    with pytest.raises(KeyError):
        PersistentMap({0: 0}).delete(1)
