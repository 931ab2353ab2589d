"""Recency takes over where a graph misleads."""

from kvflow_jax.control.shadow_lru import ShadowLRU
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, make_engine, run

RING = Workflow().edge("a", "b").edge("b", "c").edge("c", "d").edge("d", "a").freeze()


def test_a_shadow_finds_what_a_cache_of_its_size_would():
    shadow = ShadowLRU(4)
    assert shadow.access([1, 2, 3]) == 0
    assert shadow.access([1, 2, 3]) == 3
    assert shadow.access([1, 9]) == 1  # one more: it holds four
    assert shadow.access([1, 2]) == 2
    assert shadow.access([7, 8]) == 0
    assert shadow.access([1, 2, 3]) == 2  # ends went before what they continue


def call(engine, agent, turn, client):
    start = 2 * ord(agent[0]) % 40
    prompt = [start] * 16 + [turn % 40, 7, turn // 40]
    hints = Hints(workflow_id="run", agent_id=agent, graph=RING, num_fixed=16)
    one = Client(engine, prompt, max_tokens=2, hints=hints, fairness_key=client)
    run(engine)
    assert one.tokens == one.cold
    return one.stats.num_cached_tokens


def found(safeguards):
    """A client whose run stands still at the ring's start, while it calls strangers to it."""
    cache = CacheSettings(eviction="kvflow", safeguards=safeguards)
    engine = make_engine(num_pages=18, max_model_len=24, cache=cache)
    for turn, agent in enumerate("abcd"):
        call(engine, agent, turn, "misled")
    return engine, [call(engine, "xyz"[turn % 3], turn, "misled") for turn in range(60)]


def test_a_graph_that_misleads_is_believed_no_longer():
    engine, believed = found(safeguards=False)
    _, watched = found(safeguards=True)
    assert sum(believed[-30:]) < sum(watched[-30:])
    assert watched[-30:] == [16] * 30
    assert engine.controller.run_tracker.steps(("misled", "a")) < 10


def test_a_graph_that_is_right_is_believed():
    cache = CacheSettings(eviction="kvflow", safeguards=True)
    engine = make_engine(num_pages=18, max_model_len=24, cache=cache)
    for turn in range(60):
        call(engine, "abcd"[turn % 4], turn, "right")
    watch = engine.controller._lru_fallback
    assert not watch.falls_back_to_lru("right")
    for turn in range(4):
        call(engine, "xyz"[turn % 3], turn, "other")
    assert not watch.falls_back_to_lru("other")


def test_where_all_find_less_than_recency_would_nobody_is_believed():
    """One client's agents, called once, are said to be next for ever; another's chat suffers."""
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
            Client(engine, prompt, max_tokens=2, hints=hints, fairness_key="gone")
            run(engine)
        chats = [[30 + i] * 16 for i in range(2)]
        total = 0
        for turn in range(60):
            one = Client(engine, [*chats[turn % 2], turn % 40], max_tokens=2, fairness_key="chat")
            run(engine)
            assert one.tokens == one.cold
            total += one.stats.num_prompt_tokens - one.stats.num_cached_tokens
        engine.check_integrity()
        computed[safeguards] = total
    assert computed[True] < 0.6 * computed[False]
