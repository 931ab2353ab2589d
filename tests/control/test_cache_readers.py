"""Readers of a cache: agents follow their runs unless their tenant falls back to LRU."""

import numpy as np
import pytest

from kvflow_jax.cache.next_read import SUFFIX, UNKNOWN, scheduled
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.control.cache_readers import CacheReaders
from kvflow_jax.control.readers import AgentReader, SessionReader
from tests.support.plain_request import make_request

AGENT, SESSION = AgentReader("t", "plan"), SessionReader("t", "s")


class Fallback:
    def __init__(self):
        self.tenants = set()

    def falls_back_to_lru(self, tenant):
        return tenant in self.tenants


@pytest.fixture
def request_():
    return make_request(range(8))


@pytest.fixture
def cache(request_):
    """A cache of the request's tokens, in pages of 4."""
    cache = PrefixCache(num_pages=8, page_size=4)
    lease = cache.lease(request_.root, np.empty(0, np.int32), 0.0)
    cache.grow(lease, 2, 0.0)
    cache.publish(lease, request_.tokens[:8])
    cache.release(lease, 0.0)
    return cache


def reads(cache, request):
    return [cache.next_read_of(block) for block in cache.match(request.root, request.tokens[:8])]


def test_an_agent_reads_its_prefix_when_its_runs_say_so(cache, request_):
    steps = {AGENT: scheduled(2.0)}
    readers = CacheReaders(cache, None, steps.__getitem__, None)
    readers.set_agent(AGENT, request_, request_.tokens[:4])
    assert reads(cache, request_) == [scheduled(2.0), SUFFIX]
    steps[AGENT] = scheduled(1.0)
    readers.update({AGENT: scheduled(7.0)})  # what the runs say now counts
    assert reads(cache, request_)[0] == scheduled(1.0)
    readers.remove(AGENT)
    assert reads(cache, request_) == [SUFFIX, SUFFIX]


def test_agents_of_a_tenant_that_falls_back_to_lru_are_of_unknown_order(cache, request_):
    fallback = Fallback()
    readers = CacheReaders(cache, fallback, lambda agent: scheduled(2.0), None)
    readers.set_agent(AGENT, request_, request_.tokens[:4])
    readers.set(SESSION, request_, request_.tokens[:8], scheduled(3.0))
    fallback.tenants.add("t")
    readers.update_agent(AGENT)
    assert reads(cache, request_) == [scheduled(3.0), scheduled(3.0)]
    readers.update({SESSION: UNKNOWN})
    assert reads(cache, request_) == [UNKNOWN, UNKNOWN]


def test_the_end_of_each_prefix_is_offloaded_later(cache, request_):
    ends = []
    readers = CacheReaders(cache, None, lambda agent: scheduled(2.0), ends.append)
    readers.set_agent(AGENT, request_, request_.tokens[:4])
    readers.set(SESSION, request_, request_.tokens[:3], scheduled(3.0))  # no whole block
    path = cache.match(request_.root, request_.tokens[:8])
    assert [end.block for end in ends] == [path[0]]
    readers.reset(PrefixCache(num_pages=8, page_size=4))
    readers.set_agent(AGENT, request_, request_.tokens[:4])
    assert len(ends) == 1
