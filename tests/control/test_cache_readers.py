"""Readers of a cache: prefixes follow their runs unless their tenant falls back to LRU."""

import numpy as np
import pytest

from kvflow_jax.cache.next_read import NEVER, RUNNING, SUFFIX, UNKNOWN, scheduled
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.control.agent_prefixes import AgentPrefixes
from kvflow_jax.control.cache_readers import CacheReaders
from kvflow_jax.control.readers import (
    AgentReader,
    PreemptedReader,
    PrefixReader,
    RunKey,
    SessionReader,
)
from kvflow_jax.workflow.hints import Hints
from tests.support.plain_request import make_request

AGENT, SESSION = AgentReader("t", "plan"), SessionReader("t", "s")
PREFIX, OTHER = PrefixReader("t", "plan", 1), PrefixReader("t", "plan", 2)


class Prefixes:
    """The prefixes of the agent; a run that has not called it reads those that are shared."""

    def __init__(self, known=(PREFIX,), shared=(PREFIX,)):
        self._known, self._shared = known, shared

    def of(self, agent):
        return list(self._known) if agent == AGENT else []

    def shared(self, agent):
        return list(self._shared) if agent == AGENT else []


def never_called(reader):
    """The next reads of an agent that no run has called: it is read in two steps."""
    return scheduled(2.0) if reader == AGENT else None


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
    steps = {AGENT: scheduled(2.0), PREFIX: None}
    readers = CacheReaders(cache, None, Prefixes(), steps.__getitem__, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    assert reads(cache, request_) == [scheduled(2.0), SUFFIX]
    steps[AGENT] = scheduled(1.0)
    readers.update({AGENT: scheduled(7.0)})  # what the runs say now counts
    assert reads(cache, request_)[0] == scheduled(1.0)
    steps[PREFIX] = scheduled(0.0)
    readers.update({PREFIX: scheduled(7.0)})
    assert reads(cache, request_)[0] == scheduled(0.0)
    readers.remove(PREFIX)
    assert reads(cache, request_) == [SUFFIX, SUFFIX]


def test_a_run_that_has_not_called_an_agent_reads_its_shared_prefixes_alone(cache, request_):
    steps = {AGENT: scheduled(1.0), PREFIX: None, OTHER: scheduled(3.0)}
    prefixes = Prefixes((PREFIX, OTHER), shared=(PREFIX,))
    readers = CacheReaders(cache, None, prefixes, steps.__getitem__, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    readers.set_prefix(OTHER, request_, request_.tokens[:8])
    assert reads(cache, request_) == [scheduled(1.0), scheduled(3.0)]


@pytest.mark.parametrize("late", [NEVER, scheduled(1.0).throttled()])
def test_runs_that_read_a_prefix_late_or_never_count_before_unknown_ones(cache, request_, late):
    steps = {AGENT: None, PREFIX: late}
    readers = CacheReaders(cache, None, Prefixes(), steps.__getitem__, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    assert reads(cache, request_)[0] == late
    steps[AGENT] = scheduled(3.0)  # a run that has not called it yet
    readers.update({AGENT: scheduled(3.0)})
    assert reads(cache, request_)[0] == scheduled(3.0)
    steps[AGENT] = steps[PREFIX] = None
    readers.update({PREFIX: UNKNOWN})
    assert reads(cache, request_)[0] == UNKNOWN


def test_a_prefix_that_is_no_longer_the_only_one_is_updated(cache, request_):
    prefixes = Prefixes()
    readers = CacheReaders(cache, None, prefixes, never_called, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    prefixes._known, prefixes._shared = (PREFIX, OTHER), (OTHER,)
    readers.set_prefix(OTHER, request_, request_.tokens[:8])
    assert reads(cache, request_) == [scheduled(2.0), scheduled(2.0)]
    prefixes._shared = ()
    readers.set_prefix(OTHER, request_, request_.tokens[:8])
    assert reads(cache, request_) == [UNKNOWN, UNKNOWN]


def test_a_prefix_that_was_forgotten_before_it_was_computed_gets_no_reader(cache, request_):
    readers = CacheReaders(cache, None, Prefixes((OTHER,)), never_called, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    assert reads(cache, request_) == [SUFFIX, SUFFIX]


def test_readers_of_a_tenant_that_falls_back_to_lru_are_of_unknown_order(cache, request_):
    fallback = Fallback()
    readers = CacheReaders(cache, fallback, Prefixes(), never_called, None)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    readers.set(SESSION, request_, request_.tokens[:8], scheduled(3.0))
    assert reads(cache, request_) == [scheduled(2.0), scheduled(3.0)]
    fallback.tenants.add("t")
    readers.update_agent(AGENT)
    readers.update({SESSION: scheduled(3.0)})
    assert reads(cache, request_) == [UNKNOWN, UNKNOWN]
    readers.remove(SESSION)
    readers.set(SESSION, request_, request_.tokens[:8], scheduled(3.0))
    assert reads(cache, request_) == [UNKNOWN, UNKNOWN]
    fallback.tenants.clear()
    readers.update_agent(AGENT)
    readers.update({SESSION: scheduled(3.0)})
    assert reads(cache, request_) == [scheduled(2.0), scheduled(3.0)]


def test_a_preempted_request_resumes_whatever_its_tenant_falls_back_to(cache, request_):
    fallback = Fallback()
    readers = CacheReaders(cache, fallback, Prefixes(), never_called, None)
    readers.set(PreemptedReader(1), request_, request_.tokens[:8], RUNNING)
    fallback.tenants.add("t")
    readers.update({PreemptedReader(1): RUNNING})
    assert reads(cache, request_) == [RUNNING, RUNNING]


def test_the_end_of_each_prefix_is_offloaded_later(cache, request_):
    ends = []
    readers = CacheReaders(cache, None, Prefixes(), never_called, ends.append)
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    readers.set(SESSION, request_, request_.tokens[:3], scheduled(3.0))  # no whole block
    path = cache.match(request_.root, request_.tokens[:8])
    assert [end.block for end in ends] == [path[0]]
    readers.reset(PrefixCache(num_pages=8, page_size=4))
    readers.set_prefix(PREFIX, request_, request_.tokens[:4])
    assert len(ends) == 1


def test_prefixes_of_real_calls_are_those_that_readers_are_set_for(cache):
    prefixes = AgentPrefixes(lambda reader: None)
    readers = CacheReaders(cache, None, prefixes, never_called, None)
    request = make_request(range(8), tenant="t", hints=Hints(agent_id="plan", num_fixed=4))
    fixed = prefixes.note_call(AGENT, request, RunKey("t", "run"), 4, 0.0)
    readers.set_prefix(fixed.reader, request, request.tokens[: fixed.num_tokens])
    assert reads(cache, request) == [scheduled(2.0), SUFFIX]
