"""Which cached blocks a request uses, and which of its own it shares."""

import numpy as np
import pytest

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.engine.prefix_sharing import PrefixSharing
from kvflow_jax.runtime.batch import BatchShapes
from tests.support.plain_request import make_request

PAGE = 4
PROMPT = list(range(24))


@pytest.fixture(params=[False, True], ids=["any batch", "deterministic"])
def deterministic(request):
    return request.param


@pytest.fixture
def cache():
    """A cache that holds the blocks of ``PROMPT``."""
    cache = PrefixCache(32, PAGE)
    written = make_request(PROMPT)
    lease = cache.lease(written.root, np.empty(0, np.int32), 0.0)
    assert cache.grow(lease, len(PROMPT) // PAGE, 0.0)
    cache.publish(lease, np.asarray(PROMPT, np.int32))
    cache.release(lease, 0.0)
    return cache


@pytest.fixture
def sharing(cache, deterministic):
    shapes = BatchShapes.plan(
        max_num_seqs=4,
        max_prefill_tokens=16,
        tile=8,
        page_size=PAGE,
        pages_per_seq=16,
        deterministic=deterministic,
    )
    return PrefixSharing(cache, shapes)


def running(cache, request, num_blocks):
    """Let a request run with this many private blocks, all computed."""
    request.lease = cache.lease(request.root, np.empty(0, np.int32), 0.0)
    assert cache.grow(request.lease, num_blocks, 0.0)
    request.num_computed = num_blocks * PAGE
    return request


def test_a_match_leaves_a_token_to_compute(sharing, deterministic):
    # Deterministic steps hit whole tiles, of two blocks.
    num_blocks = {len(PROMPT): 4 if deterministic else 5, len(PROMPT) + 1: 6}
    for length, expected in num_blocks.items():
        request = make_request([*PROMPT, 99][:length])
        assert len(sharing.match(request)) == expected


def test_a_request_that_scores_its_prompt_shares_nothing(sharing):
    request = make_request(PROMPT, prompt_logprobs=0)
    assert request.scores_prompt
    assert len(sharing.match(request)) == 0
    assert not sharing.may_hit(request)


def test_running_requests_may_hit_unless_steps_are_deterministic(sharing, deterministic):
    assert sharing.may_hit(make_request(PROMPT)) is not deterministic


def test_blocks_of_outputs_are_shared_unless_steps_are_deterministic(cache, sharing, deterministic):
    request = running(cache, make_request(list(range(100, 106))), 2)
    for token in (1, 2, 3):
        request.append(token)
    shared = sharing.shareable_tokens(request)
    assert len(shared) == (6 if deterministic else 8)
    assert sharing.has_unindexed_block(request)
    cache.publish(request.lease, shared)
    assert not sharing.has_unindexed_block(request)


def test_a_waiting_request_has_the_key_of_the_block_that_another_computes_next(cache, sharing):
    first = running(cache, make_request([7] * 12), 1)
    cache.publish(first.lease, sharing.shareable_tokens(first))
    second = make_request([7] * 9)
    matched = cache.match(second.root, second.known_tokens[:PAGE])
    key = sharing.block_key(second, matched)
    assert key is not None
    assert key == sharing.next_block(first)


def test_a_block_without_all_of_its_tokens_has_no_key(cache, sharing):
    request = running(cache, make_request([7] * 6), 1)
    assert sharing.next_block(request) is None
    assert sharing.next_block(make_request([7] * 6)) is None
