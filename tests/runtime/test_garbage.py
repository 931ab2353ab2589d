"""What is alive when a server is ready is not visited again."""

import gc
import weakref

import pytest

from kvflow_jax.runtime.garbage import freeze_heap


class Node:
    pass


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()


def make_cycle():
    node = Node()
    node.itself = node
    return node


def test_what_is_alive_is_frozen_and_what_is_not_is_freed():
    dead, alive = weakref.ref(make_cycle()), make_cycle()
    freeze_heap()
    assert dead() is None
    assert gc.get_freeze_count() > 1000
    assert not any(one is alive for one in gc.get_objects())


def test_what_comes_later_is_collected():
    freeze_heap()
    later = weakref.ref(make_cycle())
    gc.collect()
    assert later() is None
