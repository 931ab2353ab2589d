"""The scheduler: order, admission, preemption, chunked prefill."""

import pytest

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import Request
from kvflow_jax.runtime.batch import BatchShapes
from tests.support.plain_request import make_request
from tests.support.token_runner import Client, make_engine, prompt_without_eos, run

PAGE = 4


def make_scheduler(*, num_pages=32, max_num_seqs=4, max_prefill_tokens=32) -> Scheduler:
    shapes = BatchShapes.plan(
        max_num_seqs=max_num_seqs,
        max_prefill_tokens=max_prefill_tokens,
        tile=8,
        page_size=PAGE,
        pages_per_seq=16,
    )
    return Scheduler(PrefixCache(num_pages, PAGE), shapes)


def add(
    scheduler, request_id, prompt, *, tenant="", user="", priority=0, rank=0, max_tokens=8
) -> Request:
    request = make_request(
        prompt,
        request_id,
        user=user,
        tenant=tenant,
        rank=rank,
        priority=priority,
        max_tokens=max_tokens,
    )
    scheduler.add(request)
    return request


def ids(requests):
    return [request.id for request in requests]


def test_users_alternate_whatever_each_has_queued():
    scheduler = make_scheduler()
    for request_id in range(3):
        add(scheduler, request_id, [request_id], user="batch")
    add(scheduler, 3, [3], user="interactive")
    add(scheduler, 4, [4], user="interactive")
    assert ids(scheduler.waiting) == [0, 3, 1, 4, 2]


def test_a_new_user_starts_at_the_virtual_time_of_the_running_requests():
    scheduler = make_scheduler(max_num_seqs=3)
    for request_id in range(6):
        add(scheduler, request_id, [request_id], user="batch")
    scheduler.schedule(0.0)
    late = add(scheduler, 6, [6], user="interactive")
    assert late.virtual_start == scheduler.running[-1].virtual_start == 2
    assert ids(scheduler.waiting) == [6, 3, 4, 5]


def test_priority_comes_before_fairness_and_arrival():
    scheduler = make_scheduler()
    add(scheduler, 0, [0])
    add(scheduler, 1, [1], priority=-1)
    add(scheduler, 2, [2], priority=1)
    assert ids(scheduler.waiting) == [2, 0, 1]


def test_a_throttled_request_is_passed_over_but_not_lost():
    scheduler = make_scheduler()
    for request_id in range(3):
        add(scheduler, request_id, [request_id])
    scheduler.can_admit = lambda request: request.id != 0
    plan = scheduler.schedule(0.0)
    assert ids(plan.admitted) == [1, 2]
    assert ids(scheduler.waiting) == [0]


def test_a_request_too_large_for_the_free_blocks_is_not_overtaken():
    scheduler = make_scheduler(num_pages=8)
    for request_id, num_prompt in enumerate((20, 15, 1)):
        add(scheduler, request_id, [request_id] * num_prompt)
    plan = scheduler.schedule(0.0)
    assert ids(plan.admitted) == [0]
    assert ids(scheduler.waiting) == [1, 2]


def test_a_long_prompt_is_computed_in_chunks_of_the_step_size():
    scheduler = make_scheduler(max_prefill_tokens=16)
    request = add(scheduler, 0, range(40))
    lengths = []
    while not request.num_in_flight:
        plan = scheduler.schedule(0.0)
        lengths += plan.prefill_lengths
    assert lengths == [16, 16, 8]
    assert request.num_computed == request.num_prompt_computed == 40


def test_a_removed_request_leaves_neither_lease_nor_seq_slot():
    scheduler = make_scheduler(max_num_seqs=1)
    running, waiting = add(scheduler, 0, range(10)), add(scheduler, 1, range(10))
    scheduler.schedule(0.0)
    assert (scheduler.running, list(scheduler.waiting)) == ([running], [waiting])
    for request in (running, waiting, waiting):
        scheduler.remove(request, 0.0)
    scheduler.check_integrity()
    assert not [*scheduler.running, *scheduler.waiting]


def test_a_request_whose_load_failed_waits_again():
    scheduler = make_scheduler()
    first, other = add(scheduler, 0, [1] * 10), add(scheduler, 1, [2] * 10)
    scheduler.schedule(0.0)
    assert first.lease is not None
    requeued = scheduler.requeue_failed_loads(first.lease.blocks[:1], 0.0)
    assert (list(scheduler.waiting), scheduler.running) == ([first], [other])
    assert requeued == [(first, 10)]
    assert first.num_computed == 0
    assert first.num_preemptions == 0
    scheduler.check_integrity()


def test_unpublish_names_every_request_that_leases_a_block_of_the_plan():
    scheduler = make_scheduler(max_prefill_tokens=8)
    first = add(scheduler, 0, [9] * 8 + [1])
    plan = scheduler.schedule(0.0)
    second = add(scheduler, 1, [9] * 8 + [2])
    later = scheduler.schedule(0.0)
    assert scheduler.running == [first, second]
    assert scheduler.unpublish(later) == [first, second]
    assert scheduler.unpublish(plan) == [first, second]
    for request in (first, second):
        scheduler.remove(request, 0.0)
    scheduler.check_integrity()


def test_a_seq_slot_that_is_missing_fails_the_integrity_check():
    scheduler = make_scheduler()
    scheduler.running_requests._free_seq_slots.pop()
    with pytest.raises(IntegrityError, match="seq slot"):
        scheduler.check_integrity()


def test_a_waiting_request_with_a_seq_slot_fails_the_integrity_check():
    scheduler = make_scheduler()
    add(scheduler, 0, [1]).seq_slot = 0
    with pytest.raises(IntegrityError, match="a waiting request"):
        scheduler.check_integrity()


# In the engine, with the tokens of a cold run as reference.


def test_concurrent_requests_compute_a_shared_prefix_once():
    engine = make_engine(max_model_len=128, num_pages=64)
    shared = prompt_without_eos(60)
    clients = [Client(engine, [*shared, n], ignore_eos=True) for n in range(3)]
    run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert clients[0].stats.num_cached_tokens == 0
    assert [c.stats.num_cached_tokens for c in clients[1:]] == [60, 60]


def test_a_preempted_request_ends_with_the_same_tokens():
    engine = make_engine(num_pages=16, max_model_len=60)
    clients = [
        Client(engine, prompt_without_eos(12, seed), max_tokens=30, ignore_eos=True)
        for seed in range(3)
    ]
    run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert engine.stats.num_preemptions > 0
    assert clients[0].stats.num_preemptions == 0
    assert engine.cache.num_leased == 0


def test_a_higher_priority_runs_first():
    engine = make_engine(num_pages=8, max_num_seqs=1, max_model_len=32)
    low = Client(engine, prompt_without_eos(10, 1), ignore_eos=True)
    lower = Client(engine, prompt_without_eos(10, 2), ignore_eos=True)
    high = Client(engine, prompt_without_eos(10, 3), ignore_eos=True, priority=5)
    run(engine)
    ends = [c.stats.finished_s for c in (high, low, lower)]
    assert ends == sorted(ends)


def test_decoding_continues_beside_a_long_prefill():
    engine = make_engine(max_model_len=256, num_pages=100, max_prefill_tokens=16)
    decoding = Client(engine, prompt_without_eos(5), max_tokens=12, ignore_eos=True)
    long = Client(engine, prompt_without_eos(200, 1), max_tokens=1)
    run(engine)
    # Its tokens were sampled while the long prompt was computed chunk by chunk.
    assert decoding.stats.finished_s < long.stats.first_token_s
    assert decoding.tokens == decoding.cold
    assert long.tokens == long.cold


def fill(scheduler, num, *, num_prompt=4, tenant="greedy", **fields):
    return [
        add(scheduler, i, [i % 90] * num_prompt, tenant=tenant, max_tokens=500, **fields)
        for i in range(num)
    ]


def test_a_tenant_with_every_seq_slot_gives_one_to_another():
    scheduler = make_scheduler()
    fill(scheduler, 100)
    scheduler.schedule(0.0)
    assert len(scheduler.running) == 4
    other = add(scheduler, 100, [91] * 8, tenant="other")
    plan = scheduler.schedule(0.0)
    assert plan.admitted == [other]
    assert [preempted.request.share for preempted in plan.preempted] == ["greedy"]
    for request in scheduler.running:
        request.num_in_flight = 0
    # Each has less than it could take from the other: nobody gives way again.
    add(scheduler, 101, [92] * 8, tenant="other")
    assert len(scheduler.schedule(0.0).preempted) == 1
    add(scheduler, 102, [93] * 8, tenant="other")
    assert not scheduler.schedule(0.0).preempted
    scheduler.check_integrity()


def test_priorities_take_no_seq_slots_of_others():
    scheduler = make_scheduler()
    fill(scheduler, 4)
    other = add(scheduler, 100, [91] * 8, tenant="other")
    fill(scheduler, 4, priority=10**9)
    assert other in scheduler.schedule(0.0).admitted


def test_a_lower_rank_waits_for_all_others():
    scheduler = make_scheduler()
    late = add(scheduler, 100, [91] * 8, tenant="batch", rank=-1)
    fill(scheduler, 8)
    assert late not in scheduler.schedule(0.0).admitted
    assert not scheduler.schedule(0.0).preempted


def test_a_long_prompt_of_another_tenant_takes_the_rows_of_every_other_step():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    fill(scheduler, 2, num_prompt=60)
    for _ in range(2):
        scheduler.schedule(0.0)
    other = add(scheduler, 100, [91] * 32, tenant="other")
    num_steps = 0
    while not other.num_in_flight:
        scheduler.schedule(0.0)
        num_steps += 1
    assert num_steps <= 2 * 2 + 1  # twice the steps that it takes alone, and one that was under way


def steps_until_computed(scheduler, request):
    """Run steps until the prompt of a request is computed; return how many."""
    for num_steps in range(1, 100):
        scheduler.schedule(0.0)
        scheduler.check_integrity()
        if request.num_in_flight:
            return num_steps
    raise AssertionError("the prompt was not computed")


@pytest.mark.parametrize("num_waiting", [0, 3])
def test_a_short_prompt_waits_for_no_long_one_of_its_tenant(num_waiting):
    scheduler = make_scheduler(num_pages=256, max_num_seqs=8, max_prefill_tokens=16)
    for i in range(1 + num_waiting):
        add(scheduler, i, [i] * 60)
    scheduler.schedule(0.0)
    short = add(scheduler, 100, [91] * 16)
    assert steps_until_computed(scheduler, short) == 1


def test_a_long_prompt_waits_no_longer_than_with_equal_shares():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    add(scheduler, 0, [1] * 64)
    scheduler.schedule(0.0)
    second = add(scheduler, 1, [2] * 32)
    assert steps_until_computed(scheduler, second) <= 2 * 2 + 1
    third = add(scheduler, 2, [3] * 64)
    assert steps_until_computed(scheduler, third) <= 2 * 4 + 1


def test_equal_prompts_are_computed_one_after_the_other():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    prompts = [add(scheduler, i, [i] * 32) for i in range(3)]
    assert [steps_until_computed(scheduler, prompt) for prompt in prompts] == [2, 2, 2]


def test_short_prompts_without_end_do_not_starve_a_long_one():
    scheduler = make_scheduler(num_pages=256, max_num_seqs=50, max_prefill_tokens=16)
    long = add(scheduler, 1000, [90] * 60)
    scheduler.schedule(0.0)
    for i in range(40):
        add(scheduler, i, [i] * 16)
        scheduler.schedule(0.0)
        if long.num_in_flight:
            break
    # Of the rows of each step it gets at least what it would with two equal shares.
    assert i <= 2 * 4


def test_a_prompt_of_lower_priority_does_not_overtake():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    long = add(scheduler, 0, [1] * 60)
    scheduler.schedule(0.0)
    short = add(scheduler, 1, [2] * 8, priority=-1)
    while not long.num_in_flight:
        assert short.lease is None
        scheduler.schedule(0.0)


def test_who_overtakes_leaves_the_first_in_the_queue_its_blocks():
    scheduler = make_scheduler(num_pages=32, max_prefill_tokens=16)
    add(scheduler, 0, [1] * 60)
    scheduler.schedule(0.0)
    first = add(scheduler, 1, [2] * 60)  # 15 blocks of the 17 that are left
    short = add(scheduler, 2, [3] * 16)
    while first.lease is None:
        scheduler.schedule(0.0)
        assert short.lease is None or first.lease is not None
    scheduler.check_integrity()


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_overtakes_while_a_request_before_its_tenant_waits_for_blocks(rank):
    scheduler = make_scheduler(num_pages=40, max_num_seqs=16, max_prefill_tokens=8)
    others = [add(scheduler, i, [i] * 40, tenant="other", rank=rank) for i in range(2)]
    while any(request.num_computed < 40 for request in others):
        scheduler.schedule(0.0)
    long = add(scheduler, 2, [2] * 48, tenant="quick")
    scheduler.schedule(0.0)
    large = add(scheduler, 3, [3] * 60, tenant="large", rank=rank)  # 15 blocks of the 8 that last
    scheduler.schedule(0.0)
    short = add(scheduler, 4, [4] * 3, tenant="quick")
    while not long.num_in_flight:
        scheduler.schedule(0.0)
        assert short.lease is None
    assert large.lease is None


@pytest.mark.parametrize(("num_seqs", "num_pages"), [(2, 200), (50, 20)], ids=["slots", "blocks"])
def test_a_step_asks_no_more_prompts_than_there_is_room_for(num_seqs, num_pages):
    scheduler = make_scheduler(num_pages=num_pages, max_num_seqs=num_seqs, max_prefill_tokens=8)
    add(scheduler, 0, [1] * 60)  # 15 blocks
    add(scheduler, 1, [2] * 3, priority=1)
    scheduler.schedule(0.0)
    for i in range(100):
        add(scheduler, 2 + i, [3, i % 90, i // 90] * 5)
    scheduler.schedule(0.0)
    tried = []
    matches = scheduler.sharing.match
    scheduler.sharing.match = lambda request: tried.append(request) or matches(request)
    scheduler.can_admit = lambda request: tried.append(request) or True
    scheduler.schedule(0.0)
    assert len(tried) < 20


def test_a_cached_prefix_makes_a_prompt_short():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    cached = add(scheduler, 0, [1] * 60)
    steps_until_computed(scheduler, cached)
    scheduler.remove(cached, 0.0)
    add(scheduler, 1, [2] * 60)
    scheduler.schedule(0.0)
    again = add(scheduler, 2, [1] * 60 + [3] * 3)
    assert steps_until_computed(scheduler, again) == 1


def test_what_a_prompt_computed_before_it_was_broken_off_is_kept():
    scheduler = make_scheduler(num_pages=256, max_prefill_tokens=16)
    for attempt in range(3):
        request = add(scheduler, attempt, [7] * 60)
        scheduler.schedule(0.0)
        assert request.num_cached == attempt * 16
        scheduler.remove(request, 0.0)


def test_a_tenant_with_most_blocks_gives_them():
    scheduler = make_scheduler(num_pages=32, max_num_seqs=8, max_prefill_tokens=128)
    fill(scheduler, 4, num_prompt=27)
    scheduler.schedule(0.0)
    assert len(scheduler.running) == 4
    other = add(scheduler, 100, [91] * 50, tenant="other")
    plan = scheduler.schedule(0.0)
    assert other in plan.admitted
    assert {preempted.request.share for preempted in plan.preempted} == {"greedy"}
    scheduler.check_integrity()


def test_a_request_that_grows_preempts_the_tenant_that_leases_most():
    scheduler = make_scheduler(num_pages=16, max_num_seqs=4)
    greedy = fill(scheduler, 3, num_prompt=16)
    other = add(scheduler, 100, [91] * 8, tenant="other")
    preempted = []
    for _ in range(40):
        plan = scheduler.schedule(0.0)
        preempted += [request for request, _ in plan.preempted]
        for chunk in plan.chunks:
            if chunk.samples:
                chunk.request.append(chunk.request.id % 90)
    assert preempted
    assert other not in preempted
    assert set(preempted) <= set(greedy)
    scheduler.check_integrity()
