"""Fair queueing between tenants, and between the users of one."""

from kvflow_jax.engine.fair_queue import FairQueue
from tests.support.plain_request import make_request


def fill(queue, *names, **fields):
    """Add requests; a name is a tenant's, its case the user's."""
    requests = []
    for name in names:
        request = make_request(
            [1], len(queue) + len(requests) + 100, tenant=name.lower(), user=name, **fields
        )
        queue.add(request)
        requests.append(request)
    return requests


def tenants(queue):
    return [turn[1] for turn in queue.turns()]


def test_the_tenant_that_was_served_least_is_next_whatever_it_has_queued():
    queue = FairQueue()
    for request in fill(queue, "a", *"a" * 50, "b"):
        if request.share == "b" or request.id == 100:
            queue.admit(request)
    fill(queue, "a", "b")
    queue.serve("a", 10)
    queue.serve("b", 9)
    assert tenants(queue) == ["b", "a"]
    queue.serve("b", 2)
    assert tenants(queue) == ["a", "b"]


def test_a_tenant_that_comes_later_has_neither_debt_nor_claim():
    queue = FairQueue()
    (first,) = fill(queue, "a")
    queue.admit(first)
    queue.serve("a", 1_000)
    fill(queue, "a", "b")
    assert tenants(queue) == ["b", "a"]  # as much service, and nothing that runs
    (other,) = (r for r in queue if r.share == "b")
    queue.admit(other)
    queue.serve("b", 1)
    fill(queue, "b")
    assert tenants(queue) == ["a", "b"]


def test_priority_and_users_order_the_requests_of_their_tenant_only():
    queue = FairQueue()
    low, user, *_ = fill(queue, "a", "A")
    (high,) = fill(queue, "a", priority=5)
    fill(queue, "b")
    assert tenants(queue) == ["a", "b"]
    assert queue.of((0, "a")) == [high, low, user]


def test_a_higher_rank_precedes_all_tenants():
    queue = FairQueue()
    fill(queue, "a", rank=-1)
    fill(queue, "b", "c")
    queue.admit(next(r for r in queue if r.share == "c"))
    queue.serve("c", 1_000)
    fill(queue, "c")
    assert queue.turns() == [(0, "b"), (0, "c"), (-1, "a")]


def test_a_tenant_without_requests_is_forgotten():
    queue = FairQueue()
    waiting, running = fill(queue, "a", "b")
    queue.admit(running)
    assert queue.num_tenants == 2
    queue.end(running, is_running=True)
    queue.end(waiting, is_running=False)
    queue.end(waiting, is_running=False)
    assert (queue.num_tenants, len(queue), list(queue)) == (0, 0, [])


def test_a_request_that_is_put_back_keeps_its_place():
    queue = FairQueue()
    first, second = fill(queue, "a", "a")
    queue.admit(first)
    assert queue.num_running("a") == 1
    queue.requeue(first)
    assert list(queue) == [first, second]
    assert queue.num_running("a") == 0


def test_users_that_no_longer_matter_are_forgotten():
    queue = FairQueue()
    fill(queue, "a")
    for i in range(1_000):
        request = make_request([1], i, tenant="a", user=str(i))
        queue.add(request)
        queue.admit(request)
        queue.end(request, is_running=True)
    assert len(queue._tenants["a"].last_start) < 100


def test_prompts_end_in_the_order_of_equal_shares():
    queue = FairQueue()
    long, short, middle = (make_request([1], i, tenant="a") for i in range(3))
    queue.add(long, 100)
    queue.admit(long)
    queue.add(short, 10)
    queue.add(middle, 60)
    assert queue.overtaking((0, "a"), [long]) == [short, middle]
    assert queue.overtaking((0, "a"), []) == []
    queue.serve_prompts("a", 150, num_running=1)  # 50 each
    late = make_request([1], 3, tenant="a")
    queue.add(late, 40)
    assert queue.overtaking((0, "a"), [long]) == [short, middle, late]
    later = make_request([1], 4, tenant="a")
    queue.add(later, 60)
    assert later not in queue.overtaking((0, "a"), [long])
