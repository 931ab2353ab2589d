"""The ghost cache, and tenants that fall back to LRU because of it."""

import pytest

from kvflow_jax.control import shadow_lru
from kvflow_jax.control.readers import AgentReader
from kvflow_jax.control.shadow_lru import LruFallback, ShadowLRU
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.bare_request import bare_request
from tests.support.token_runner import Client, make_engine, run

RING = Workflow().edge("a", "b").edge("b", "c").edge("c", "d").edge("d", "a").freeze()


def test_the_ghost_cache_hits_where_an_lru_cache_of_its_size_would():
    shadow = ShadowLRU(4)
    assert shadow.access([1, 2, 3]) == 0
    assert shadow.access([1, 2, 3]) == 3
    assert shadow.access([1, 9]) == 1  # the fourth block of four
    assert shadow.access([1, 2]) == 2
    assert shadow.access([7, 8]) == 0
    assert shadow.access([1, 2, 3]) == 2  # the end of a sequence was evicted first


def call(engine, agent, turn, tenant):
    start = 2 * ord(agent[0]) % 40
    prompt = [start] * 16 + [turn % 40, 7, turn // 40]
    hints = Hints(workflow_id="run", agent_id=agent, graph=RING, num_fixed=16)
    client = Client(engine, prompt, max_tokens=2, hints=hints, tenant=tenant)
    run(engine)
    assert client.tokens == client.cold
    return client.stats.num_cached_tokens


def calls_outside_the_graph(safeguards):
    """Cached tokens of a tenant that calls agents which its graph, a ring, does not have."""
    cache = CacheSettings(eviction="kvflow", safeguards=safeguards)
    engine = make_engine(num_pages=18, max_model_len=24, cache=cache)
    for turn, agent in enumerate("abcd"):
        call(engine, agent, turn, "misled")
    return engine, [call(engine, "xyz"[turn % 3], turn, "misled") for turn in range(60)]


def test_a_tenant_whose_graph_lowers_the_hit_rate_falls_back_to_lru():
    engine, unguarded = calls_outside_the_graph(safeguards=False)
    _, guarded = calls_outside_the_graph(safeguards=True)
    assert sum(unguarded[-30:]) < sum(guarded[-30:])
    assert guarded[-30:] == [16] * 30
    (prefix,) = engine.controller._agent_prefixes.of(AgentReader("misled", "a"))
    assert engine.controller.run_tracker.next_read_of(prefix).is_scheduled


def test_a_tenant_whose_graph_is_right_does_not_fall_back():
    cache = CacheSettings(eviction="kvflow", safeguards=True)
    engine = make_engine(num_pages=18, max_model_len=24, cache=cache)
    for turn in range(60):
        call(engine, "abcd"[turn % 4], turn, "right")
    fallback = engine.controller._lru_fallback
    assert not fallback.falls_back_to_lru("right")
    for turn in range(4):
        call(engine, "xyz"[turn % 3], turn, "other")
    assert not fallback.falls_back_to_lru("other")


def test_all_tenants_fall_back_if_all_calls_together_hit_less_than_lru():
    """A tenant's agents, called once, stay at the next step; another tenant's chat suffers."""
    graph = Workflow("star").entry("hub").join("hub", "any")
    for agent in "abcd":
        graph.edge("hub", agent).edge(agent, "hub")
    graph = graph.freeze()
    computed = {}
    for safeguards in (False, True):
        cache = CacheSettings(eviction="kvflow", safeguards=safeguards)
        engine = make_engine(num_pages=22, max_model_len=24, cache=cache)
        for agent in "abcd":
            prompt = [2 * ord(agent) % 40] * 16 + [7]
            hints = Hints(workflow_id="run", agent_id=agent, graph=graph, num_fixed=16)
            Client(engine, prompt, max_tokens=2, hints=hints, tenant="gone")
            run(engine)
        chats = [[30 + i] * 16 for i in range(2)]
        total = 0
        for turn in range(60):
            client = Client(engine, [*chats[turn % 2], turn % 40], max_tokens=2, tenant="chat")
            run(engine)
            assert client.tokens == client.cold
            total += client.stats.num_prompt_tokens - client.stats.num_cached_tokens
        engine.check_integrity()
        computed[safeguards] = total
    assert computed[True] < 0.6 * computed[False]


PAGE_SIZE = 4


def request(prompt, tenant="t", num_cached=0, **params):
    request = bare_request(prompt, tenant=tenant, **params)
    request.num_cached = num_cached
    return request


PROMPT = range(17)  # four full pages, and a token that is always computed


@pytest.fixture
def fallback():
    """It has seen PROMPT once, so that an LRU cache would hit it from now on."""
    fallback = LruFallback(num_blocks=8, page_size=PAGE_SIZE)
    fallback.on_prefill_done(request(PROMPT, "warm-up"), is_agent_call=False)
    return fallback


def calls_until_change(fallback, max_calls=1000, **kwargs):
    for i in range(1, max_calls + 1):
        if fallback.on_prefill_done(request(PROMPT, **kwargs), is_agent_call=True):
            return i
    return None


def test_a_tenant_returns_to_its_graph_after_a_number_of_calls(fallback, monkeypatch):
    monkeypatch.setattr(shadow_lru, "_GLOBAL_MIN_CALLS", 10_000)
    assert calls_until_change(fallback) == shadow_lru._MIN_CALLS
    assert fallback.falls_back_to_lru("t")
    assert not fallback.falls_back_to_lru("other")
    assert calls_until_change(fallback, num_cached=16) == shadow_lru._FALLBACK_CALLS
    assert not fallback.falls_back_to_lru("t")


def test_calls_without_an_agent_count_for_all_tenants_together(fallback):
    num_calls = 0
    while not fallback.on_prefill_done(request(PROMPT), is_agent_call=False):
        num_calls += 1
    assert num_calls >= shadow_lru._MIN_CALLS
    assert fallback.falls_back_to_lru("any")


def test_hits_as_good_as_those_of_lru_change_nothing(fallback):
    assert calls_until_change(fallback, max_calls=100, num_cached=16) is None


def test_a_prompt_that_must_be_computed_whole_does_not_count(fallback):
    assert calls_until_change(fallback, max_calls=100, prompt_logprobs=0) is None


def test_an_output_is_in_the_ghost_cache_too():
    fallback = LruFallback(num_blocks=8, page_size=PAGE_SIZE)
    finished = request(PROMPT)
    finished.num_computed = 16
    fallback.on_request_finished(finished)
    assert calls_until_change(fallback) == shadow_lru._MIN_CALLS


def test_a_reset_empties_the_ghost_cache(fallback):
    fallback.reset()
    fallback.on_prefill_done(request(PROMPT), is_agent_call=True)
    assert fallback._hit_gap == 0.0


def test_the_number_of_tenants_is_bounded(fallback, monkeypatch):
    monkeypatch.setattr(shadow_lru, "MAX_TENANTS", 2)
    for tenant in "abc":
        fallback.on_prefill_done(request(PROMPT, tenant), is_agent_call=True)
    assert list(fallback._tenants) == ["b", "c"]
