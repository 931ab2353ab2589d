"""The order of claims, and who gives way to whom."""

from types import SimpleNamespace

import pytest

from kvflow_jax.engine.fair_shares import sort_by_claim, victims_for


def running(share, num_blocks, request_id, rank=0, order=None):
    return SimpleNamespace(
        share=share,
        lease=[0] * num_blocks,
        id=request_id,
        rank=rank,
        order=order or (0, 0, request_id),
    )


def give_way(share, requests, *, blocks=1, blocks_short=0, slots_short=0, equal_share=10, rank=0):
    requests = list(requests)
    sort_by_claim(requests)
    victims = victims_for(
        running(share, 0, 99, rank),
        requests,
        num_blocks=blocks,
        blocks_short=blocks_short,
        slots_short=slots_short,
        equal_share=equal_share,
        num_freed=lambda victim: len(victim.lease),
    )
    return [victim.id for victim in victims]


def test_the_last_claim_is_of_the_tenant_that_takes_most():
    requests = [running("a", 2, 0), running("b", 1, 1), running("a", 2, 2), running("a", 2, 3)]
    requests.append(running("b", 1, 4))
    sort_by_claim(requests)
    assert [request.id for request in requests] == [1, 0, 4, 2, 3]


def test_within_a_tenant_and_between_ranks_the_order_stands():
    requests = [running("a", 2, 0, order=(0, 5, 0)), running("a", 2, 1, order=(0, 1, 1))]
    requests += [running("b", 1, 2, rank=1), running("b", 1, 3, rank=-1)]
    sort_by_claim(requests)
    assert [request.id for request in requests] == [2, 1, 0, 3]


def test_a_tenant_with_more_slots_gives_one():
    crowd = [running("a", 1, i) for i in range(4)]
    assert give_way("b", crowd, slots_short=1) == [3]
    # It would not keep as many as the other gets.
    assert give_way("b", [*crowd[:2], running("b", 1, 8)], slots_short=1) == []


def test_nobody_gives_way_if_nothing_is_short_or_it_would_not_suffice():
    crowd = [running("a", 1, i) for i in range(4)]
    assert give_way("b", crowd) == []
    assert give_way("b", crowd, blocks=2, blocks_short=4) == []
    assert give_way("a", crowd, slots_short=1) == []


def test_no_request_of_a_higher_rank_gives_way():
    crowd = [running("a", 1, i, rank=1) for i in range(4)]
    assert give_way("b", crowd, slots_short=1) == []
    assert give_way("b", crowd, slots_short=1, rank=1) == [3]


@pytest.mark.parametrize(
    ("blocks", "victims"),
    [
        (4, [1]),  # 8 blocks are left, which is more than the other gets
        (9, [1]),  # it has more than an equal share, and the other stays within one
        (11, []),  # neither
    ],
)
def test_blocks_are_given_down_to_an_equal_share(blocks, victims):
    crowd = [running("a", 8, 0), running("a", 8, 1)]
    assert give_way("b", crowd, blocks=blocks, blocks_short=4) == victims


def test_one_request_with_all_blocks_gives_way_once():
    assert give_way("b", [running("a", 20, 0)], blocks=3, blocks_short=3) == [0]
    # The tenant that gave way does not take it back.
    assert give_way("a", [running("b", 3, 1)], blocks=20, blocks_short=3) == []
