"""Who gives way: the order of claims of running requests, and whom to preempt for another tenant.

Pure functions of the running requests, whose leases say what each tenant takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kvflow_jax.requests.request import Request


def sort_by_claim(running: list[Request]) -> None:
    """Sort running requests by the blocks that their tenants lease before them.

    Within a tenant the order is the tenant's own. The first requests of all tenants precede the
    second of any, the shortest before the others, and the last request is the one that gives way.
    """
    num_before: dict[int, int] = {}
    num_leased: Counter[str] = Counter()
    for request in sorted(running, key=lambda request: request.order):
        num_before[request.id] = num_leased[request.share]
        num_leased[request.share] += _num_blocks(request)
    running.sort(key=lambda r: (-r.rank, num_before[r.id], _num_blocks(r), r.id))


def victims_for(
    request: Request,
    running: Sequence[Request],
    *,
    num_blocks: int,
    blocks_short: int,
    slots_short: int,
    equal_share: float,
    num_freed: Callable[[Request], int],
) -> list[Request]:
    """Return whom to preempt for a waiting request.

    A tenant gives way while it keeps as much as the other gets, or while it has more than an equal
    share and the other stays within one. The other can then not take it back.

    Args:
        running: sorted by ``sort_by_claim``.
        num_blocks: that the request will lease.
        blocks_short, slots_short: what it lacks of blocks and of seq slots.
        equal_share: blocks of the pool for each tenant.
        num_freed: returns how many blocks the preemption of a request makes available.

    Returns:
        The requests to preempt; none if the request lacks nothing, or too few may be preempted.
    """
    num_leased, num_running = Counter[str](), Counter[str]()
    for other in running:
        num_leased[other.share] += _num_blocks(other)
        num_running[other.share] += 1
    wanted_blocks = num_leased[request.share] + num_blocks
    wanted_slots = num_running[request.share] + 1
    victims: list[Request] = []
    for victim in reversed(running):
        if blocks_short <= 0 and slots_short <= 0:
            return victims
        share = victim.share
        if share == request.share or victim.rank > request.rank:
            continue
        if slots_short > 0:
            gives_way = num_running[share] - 1 >= wanted_slots
        else:
            gives_way = (
                num_leased[share] - _num_blocks(victim) >= wanted_blocks
                or num_leased[share] > equal_share >= wanted_blocks
            )
        if gives_way:
            victims.append(victim)
            num_leased[share] -= _num_blocks(victim)
            num_running[share] -= 1
            blocks_short -= num_freed(victim)
            slots_short -= 1
    return victims if blocks_short <= 0 and slots_short <= 0 else []


def _num_blocks(request: Request) -> int:
    return 0 if request.lease is None else len(request.lease)
