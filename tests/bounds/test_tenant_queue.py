import pytest

from kvflow_jax.bounds.tenant_queue import TenantQueue


def test_tenants_take_turns_and_their_items_keep_their_order():
    queue = TenantQueue()
    for item in ("a0", "a1", "a2", "b0", "c0", "c1"):
        queue.push(item[0], item)
    assert len(queue) == 6
    assert [queue.pop() for _ in range(4)] == ["a0", "b0", "c0", "a1"]
    queue.push("b", "b1")
    assert [queue.pop() for _ in range(3)] == ["c1", "a2", "b1"]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_cleared_queue_is_empty():
    queue = TenantQueue()
    queue.push("a", 1)
    queue.clear()
    assert not len(queue)
    with pytest.raises(IndexError):
        queue.pop()
