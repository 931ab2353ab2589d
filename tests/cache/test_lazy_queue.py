"""The lazy priority queue: the newest key of an item counts, and ineligible items are skipped."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.cache.lazy_queue import LazyQueue, TenantQueues


def drain(queue):
    items = []
    while (item := queue.pop()) is not None:
        items.append(item)
    return items


def test_items_are_popped_in_lexicographic_order_of_their_keys():
    queue = LazyQueue(lambda _item: True)
    queue.push([1, 2, 3, 4], [[0.0, 9.0], [-5.0, 3.0], [0.0, 1.0], [-5.0, 2.0]])
    assert queue.peek() == ([-5.0, 2.0], 4)
    assert drain(queue) == [4, 2, 3, 1]
    assert queue.peek() is None


def test_items_of_equal_keys_are_popped_in_the_order_of_their_pushes():
    queue = LazyQueue(lambda _item: True)
    queue.push([3, 1, 2], [[1.0]] * 3)
    assert drain(queue) == [3, 1, 2]


def test_the_newest_key_of_an_item_counts():
    queue = LazyQueue(lambda _item: True)
    queue.push([1, 2], [[1.0], [2.0]])
    queue.push([1], [[3.0]])
    assert drain(queue) == [2, 1]


def test_an_ineligible_item_is_dropped_until_it_is_pushed_again():
    eligible = {1, 2}
    queue = LazyQueue(eligible.__contains__)
    queue.push([1, 2], [[1.0], [2.0]])
    eligible.remove(1)
    assert queue.items() == {2}
    assert queue.peek() == ([2.0], 2)
    eligible.add(1)
    assert queue.items() == {2}
    queue.push([1], [[1.0]])
    assert drain(queue) == [1, 2]


def test_stale_entries_are_removed_when_keys_change_often():
    queue = LazyQueue(lambda _item: True)
    for now in range(10_000):
        queue.push([now % 10], [[float(now % 3), float(now)]])
    assert len(queue) < 200
    assert drain(queue) == sorted(range(10), key=lambda i: ((9990 + i) % 3, i))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), max_size=300),
    st.sets(st.integers(0, 9)),
)
def test_the_order_is_that_of_a_sort_of_the_newest_keys(pushes, ineligible):
    queue, keys = LazyQueue(lambda item: item not in ineligible), {}
    for number, (item, steps, last_use) in enumerate(pushes):
        queue.push([item], np.array([[steps, last_use]], float).tolist())
        keys[item] = (steps, last_use, number)
    expected = sorted(keys.keys() - ineligible, key=keys.__getitem__)
    assert drain(queue) == expected


def test_a_queue_of_tenants_has_the_lowest_of_one_and_of_all():
    queues = TenantQueues(lambda item: item != 5)
    queues.push(0, [1, 2], [[3.0], [1.0]])
    queues.push(7, [4, 5], [[2.0], [0.0]])
    assert queues.top()[:2] == ([1.0], 2)
    assert queues.top(7)[:2] == ([2.0], 4)
    assert queues.top(8) is None
    assert queues.items() == {1, 2, 4}
    assert queues.top()[2].pop() == 2
    assert queues.top()[:2] == ([2.0], 4)
