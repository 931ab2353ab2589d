"""The contexts of a tenant, and their bounds."""

import gc
import random
import tracemalloc

import pytest

from kvflow_jax.reuse.context_store import MAX_AGENTS, MAX_NAME_LEN, ContextStore, key_of
from kvflow_jax.reuse.context_tree import ContextTree


def learn(store, calls):
    for number in range(1, len(calls)):
        for context in store.to_learn(calls[:number]):
            num_bytes = context.num_bytes
            context.learn(calls[number], 1.0)
            store.num_bytes += context.num_bytes - num_bytes
        store.count(calls[number])


def store(added=lambda: None):
    return ContextStore(3, added)


def test_pairs_have_an_order_and_triples_have_none():
    assert key_of("abc", 2) == ("b", "c")
    assert key_of("cba", 2) == ("b", "a")
    assert key_of("abc", 3) == key_of("cab", 3) == ("a", "b", "c")


def test_longer_contexts_are_learned_where_the_last_agent_leaves_a_choice():
    one = store()
    learn(one, ["a", "b", "c"] * 10)
    assert one.num_long == 0
    learn(one, ["a", "b", "d"] * 10)
    assert one.find(("a", "b")) is not None
    assert one.find(("b", "c")) is None
    assert one.find(("a", "c")) is None
    assert one.find(("never",)) is one.find(()) is None


def test_frequencies_are_those_of_recent_calls():
    one = store()
    for agent in random.Random(0).choices("ab", [3, 1], k=1000):
        one.count(agent)
    assert one.frequency("a") == pytest.approx(0.75, abs=0.1)
    assert 0 < one.frequency("never") < 0.02
    assert one.knows("a")
    assert not one.knows("never")
    for _ in range(10_000):
        one.count("c")
    assert one.frequency("c") > 0.98
    assert one.frequency("a") > 0


def test_it_is_told_when_an_agent_is_followed_for_the_first_time():
    added = []
    learn(store(lambda: added.append(1)), "abcabc")
    assert len(added) == 3


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME_LEN + 1), None, 7])
def test_what_is_no_name_is_not_learned(name):
    one = store()
    assert list(one.to_learn([name])) == []
    assert len(list(one.to_learn(["a", name, "b"]))) == 1
    assert one.num_agents == 1


def test_an_agent_is_forgotten_with_all_that_names_it():
    one = store()
    learn(one, random.Random(0).choices("abcd", k=400))
    for context in one.to_learn([]):
        context.learn("a", 1.0)
    one.forget("a")
    one.forget("never")
    assert not one.knows("a")
    for key, context in one.items():
        assert "a" not in key
        assert not context.share("a")


@pytest.mark.parametrize("num_agents", [1000, 10_000])
@pytest.mark.parametrize("is_ring", [True, False])
def test_an_agent_takes_a_kilobyte_at_most(num_agents, is_ring):
    rng = random.Random(0)
    names = [f"agent-{number}" for number in range(num_agents)]
    followers = [[rng.randrange(num_agents) for _ in range(3)] for _ in names]
    gc.collect()
    tracemalloc.start()
    try:
        tree = ContextTree()
        history, number = [], 0
        for _ in range(6 * num_agents):
            tree.observe(history, names[number], 1.0)
            history = [*history, names[number]][-3:]
            number = (number + 1) % num_agents if is_ring else rng.choice(followers[number])
        tree.forecast(history)
        gc.collect()
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert tree.num_agents > 0.8 * num_agents
    assert num_bytes <= 1024 * tree.num_agents
    assert num_bytes / 1.5 <= tree.num_bytes <= 1.5 * num_bytes  # the estimate


def test_agents_that_call_once_are_bounded():
    one = store()
    learn_bytes = []
    history = []
    for number in range(100_000):
        name = f"agent-{number}"
        for context in one.to_learn(history):
            num_bytes = context.num_bytes
            context.learn(name, 1.0)
            one.num_bytes += context.num_bytes - num_bytes
        one.count(name)
        history = [name]
        if number % 10_000 == 0:
            learn_bytes.append(one.num_bytes)
    assert one.num_agents <= 2 * MAX_AGENTS
    assert max(learn_bytes) < 20 << 20
    assert one.frequency("agent-99999") < 0.1
