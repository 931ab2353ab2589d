"""Requests with a seq slot and a lease."""

import numpy as np
import pytest

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.engine.running_requests import RunningRequests
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import NO_SEQ_SLOT
from tests.support.plain_request import make_request

PAGE = 4
NOTHING = np.empty(0, np.int32)


@pytest.fixture
def cache():
    return PrefixCache(16, PAGE)


@pytest.fixture
def running(cache):
    return RunningRequests(cache, num_seq_slots=2)


def start(running, request_id, prompt, matched=NOTHING):
    request = make_request(prompt, request_id)
    running.start(request, matched, 0.0)
    return request


def test_a_request_that_starts_has_blocks_for_its_prompt(running, cache):
    request = start(running, 0, range(10))
    assert len(request.lease) == 3
    assert running.num_free_seq_slots == 1
    assert (request.num_computed, request.num_cached) == (0, 0)
    assert running.num_prompt_tokens == 10
    running.check_integrity()
    running.end(request, 0.0)
    assert (request.lease, request.seq_slot) == (None, NO_SEQ_SLOT)
    assert (running.num_free_seq_slots, cache.num_leased) == (2, 0)
    running.check_integrity()


def test_a_cached_prefix_counts_once_however_often_a_request_starts(running, cache):
    first = start(running, 0, range(10))
    cache.publish(first.lease, first.tokens[:8])
    matched = cache.match(first.root, first.tokens[:9])
    second = start(running, 1, range(10), matched)
    assert (second.num_computed, second.num_cached) == (8, 8)
    running.end(second, 0.0)
    running.start(second, matched, 0.0)
    assert (running.num_prompt_tokens, running.num_cached_tokens) == (20, 8)
    running.check_integrity()


def test_a_lease_grows_while_there_are_blocks(running):
    request = start(running, 0, range(10))
    assert running.grow(request, 12, 0.0)
    assert len(request.lease) == 3
    assert running.grow(request, 13, 0.0)
    assert len(request.lease) == 4
    assert not running.grow(request, 17 * PAGE, 0.0)


def test_room_leaves_a_block_for_each_running_request_and_what_is_reserved(running):
    start(running, 0, range(4))
    other = make_request(range(14 * PAGE), 1)
    assert running.has_room(other, NOTHING)
    assert not running.has_room(other, NOTHING, num_reserved=1)
    assert not running.has_room(make_request(range(15 * PAGE), 2), NOTHING)


def test_a_request_without_room_does_not_start_silently(running):
    with pytest.raises(IntegrityError, match="counted as available"):
        start(running, 0, range(17 * PAGE))


def test_a_lease_of_no_running_request_fails_the_integrity_check(running, cache):
    cache.grow(cache.lease(make_request([1]).root, NOTHING, 0.0), 1, 0.0)
    with pytest.raises(IntegrityError, match="no running request"):
        running.check_integrity()


def test_a_request_goes_on_when_its_load_is_done(running):
    request = start(running, 0, range(10))
    request.is_loading = True
    assert running.num_loading == 1
    running.publish_loads()
    assert running.num_loading == 0
