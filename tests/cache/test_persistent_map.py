import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.cache.persistent_map import EMPTY, PersistentMap


class Clash:
    """Keys that all hash alike: one leaf must hold them all."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clash) and other.name == self.name


@given(st.lists(st.tuples(st.booleans(), st.integers(-200, 200)), max_size=600))
def test_behaves_as_a_dict_and_old_versions_stay(ops):
    model: dict[int, int] = {}
    current: PersistentMap[int, int] = EMPTY
    versions = []
    for step, (is_set, key) in enumerate(ops):
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


def test_many_keys_and_equal_hashes():
    many = PersistentMap({i: i for i in range(20_000)})
    assert len(many) == 20_000
    assert many.get(19_999) == 19_999
    assert many.get(20_000) is None
    clashing = PersistentMap({Clash(i): i for i in range(200)})
    assert len(clashing) == 200
    assert clashing.get(Clash(77)) == 77
    smaller = clashing.delete(Clash(77))
    assert Clash(77) not in smaller
    assert Clash(77) in clashing


@given(st.sets(st.integers(0, 3000), min_size=1), st.integers(0, 2**32))
def test_many_keys_go_at_once(present, seed):
    before = PersistentMap({key: -key for key in present})
    ordered = sorted(present)
    gone = ordered[seed % len(ordered) :]
    after, taken = before.pop_many(gone)
    assert taken == [-key for key in gone]
    assert dict(after.items()) == {key: -key for key in present.difference(gone)}
    assert len(after) == len(present) - len(gone)
    assert len(before) == len(present)
    with pytest.raises(KeyError):
        before.pop_many([*gone, 3001])
    clashing = PersistentMap({Clash(i): i for i in range(200)})
    left, _ = clashing.pop_many([Clash(i) for i in range(100)])
    assert sorted(left.values()) == list(range(100, 200))
