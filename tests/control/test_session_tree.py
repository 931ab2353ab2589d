"""Sessions that wait for others, and histories that end early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.control.readers import SessionReader
from kvflow_jax.control.session_tree import MAX_CHILDREN, Ended, EndedBy, SessionTree
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import KVFLOW
from tests.support.token_runner import Client, make_engine, run

T = "t"


def hints(session, parent=None, *, agent="a", generation=None, final=False):
    return Hints(
        agent_id=agent,
        session_id=session,
        parent_session_id=parent,
        session_generation=generation,
        session_final=final,
    )


def call(tree, *args, **kw):
    """A call that begins and ends; return the sessions that it ends, with their reasons."""
    one = hints(*args, **kw)
    ended = tree.begin_call(T, one)
    assert all(reader.tenant == T for reader, _ in ended)
    is_kept = not tree.end_call(T, one)
    return {reader.session_id: reason for reader, reason in ended}, is_kept


def ended(*args, **kw):
    return call(*args, **kw)[0]


@pytest.fixture
def tree():
    return SessionTree()


def test_a_subagent_has_ended_when_its_parent_goes_on(tree):
    ended(tree, "main")
    assert not ended(tree, "sub1", "main")
    assert not ended(tree, "sub2", "main")
    assert not ended(tree, "sub1", "main")
    assert ended(tree, "main") == dict.fromkeys(("sub1", "sub2"), EndedBy.PARENT)
    assert not ended(tree, "main")  # once


def test_subagents_of_a_subagent_end_with_it(tree):
    ended(tree, "main")
    ended(tree, "sub", "main")
    ended(tree, "deep", "sub")
    assert set(ended(tree, "main")) == {"sub", "deep"}


def test_a_subagent_in_the_middle_of_a_call_has_not_ended(tree):
    ended(tree, "main")
    running = hints("sub", "main")
    tree.begin_call(T, running)
    assert not ended(tree, "main")
    tree.end_call(T, running)
    assert set(ended(tree, "main")) == {"sub"}


def test_a_subagent_beside_its_parent_is_released_once_at_most(tree):
    ended(tree, "main")
    ended(tree, "sub", "main")
    assert set(ended(tree, "main")) == {"sub"}
    for _ in range(3):  # it was not over
        assert not ended(tree, "sub", "main")
        assert not ended(tree, "main")
    assert set(ended(tree, "main", final=True)) == {"sub"}


def test_another_agent_of_the_parents_session_does_not_wait_for_its_subagents(tree):
    ended(tree, "main", agent="coder")
    ended(tree, "sub", "main", agent="explorer")
    assert not ended(tree, "main", agent="title")
    assert set(ended(tree, "main", agent="coder")) == {"sub"}


def test_tenants_do_not_share_sessions(tree):
    ended(tree, "main")
    ended(tree, "sub", "main")
    assert tree.begin_call("other", hints("main")) == []


def test_a_compaction_ends_the_generation_before(tree):
    assert call(tree, "s", generation=0) == ({}, True)
    assert call(tree, "s", generation=1) == ({"s": EndedBy.COMPACTION}, True)
    assert call(tree, "s", generation=1) == ({}, True)
    assert call(tree, "s") == ({}, True)  # without a number


def test_a_call_that_a_compaction_overtook_is_not_kept(tree):
    slow = hints("s", generation=0)
    tree.begin_call(T, slow)
    assert ended(tree, "s", generation=1) == {"s": EndedBy.COMPACTION}
    assert tree.end_call(T, slow)
    assert call(tree, "s", generation=0) == ({}, False)  # and a late one
    assert call(tree, "s", generation=1) == ({}, True)


def test_a_client_that_goes_back_for_good_is_followed(tree):
    call(tree, "s", generation=5)
    assert call(tree, "s", generation=2) == ({}, False)
    assert call(tree, "s", generation=2) == ({"s": EndedBy.COMPACTION}, True)
    assert call(tree, "s", generation=3) == ({"s": EndedBy.COMPACTION}, True)


def test_sessions_that_wait_for_each_other_end(tree):
    for session, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")):
        ended(tree, session, parent)
    for session in "abcdabcd":
        assert session not in ended(tree, session)
    ended(tree, "a", "b", final=True)


def test_ten_thousand_sessions_and_children_are_bounded():
    tree = SessionTree(max_bytes=1 << 20)
    for i in range(10_000):
        ended(tree, f"s{i}", "root" if i % 2 else f"s{i - 1}", generation=i % 3)
    assert tree.usage.num_bytes <= 1 << 20
    assert 100 < tree.usage.num_values < 10_000
    root = tree._sessions.get(T, SessionReader(T, "root"))
    assert len(root.children) <= MAX_CHILDREN
    tree._sessions.check_integrity()


NAMES = st.sampled_from("abcd")
CALLS = st.builds(
    hints,
    NAMES,
    st.none() | NAMES,
    agent=st.sampled_from(["x", "y"]),
    generation=st.none() | st.integers(0, 2),
    final=st.booleans(),
)


@given(st.lists(st.tuples(CALLS, st.booleans()), max_size=40))
def test_no_call_ends_itself_for_its_parent_or_another_in_progress(calls):
    tree = SessionTree()
    running = []
    for one, ends_at_once in calls:
        in_progress = {other.session_id for other in running}
        for reader, reason in tree.begin_call(T, one):
            if reason is EndedBy.COMPACTION:
                assert reader.session_id == one.session_id
            else:
                assert reader.session_id != one.session_id
                assert one.session_final or reader.session_id not in in_progress
        running.append(one)
        if ends_at_once:
            tree.end_call(T, running.pop(0))
        tree._sessions.check_integrity()
    for one in running:
        tree.end_call(T, one)
    assert all(not tree._sessions.get(T, reader).num_calls for reader in tree._sessions)


def test_the_end_of_an_unknown_call_is_nothing(tree):
    assert not tree.end_call(T, hints("never seen", generation=0))
    assert not tree.begin_call(T, Hints(agent_id="a"))
    assert not tree.end_call(T, Hints(agent_id="a"))
    assert Ended(SessionReader(T, "s"), EndedBy.PARENT).reason == "parent"


def readers(engine):
    return {reader for reader in engine.cache._readers._attachments if reader.kind == "session"}


def chat(engine, tokens, **fields):
    client = Client(engine, tokens, max_tokens=4, ignore_eos=True, hints=Hints(**fields))
    run(engine)
    assert client.tokens == client.cold
    return client


def test_the_blocks_of_an_ended_subagent_are_evicted_before_its_parents():
    engine = make_engine(num_pages=40, max_model_len=64, cache=KVFLOW)
    chat(engine, [5] * 40, session_id="main", agent_id="coder")
    chat(engine, [6] * 40, session_id="sub", parent_session_id="main", agent_id="explorer")
    assert readers(engine) == {SessionReader("", "main"), SessionReader("", "sub")}
    chat(engine, [5] * 44, session_id="main", agent_id="coder")
    assert readers(engine) == {SessionReader("", "main")}
    assert {reason for reason, num in engine.stats.ended_histories.items() if num} == {"parent"}
    engine.controller.check_integrity()


def test_the_history_of_an_ended_generation_has_no_reader():
    engine = make_engine(num_pages=40, max_model_len=64, cache=KVFLOW)
    chat(engine, [5] * 40, session_id="s", session_generation=1)
    chat(engine, [6] * 20, session_id="s", session_generation=2)
    stats = engine.stats.ended_histories
    assert (stats["compaction"], stats["late_call"]) == (1, 0)
    chat(engine, [5] * 44, session_id="s", session_generation=1)  # late: it hits, and is not kept
    assert engine.stats.ended_histories["late_call"] == 1
    last = chat(engine, [6] * 24, session_id="s", session_generation=2)
    assert last.stats.num_cached_tokens >= 16
    assert readers(engine) == {SessionReader("", "s")}


@pytest.mark.parametrize("parent", ["main", None])
def test_the_blocks_of_an_ended_subagent_are_evicted_before_older_sessions(parent):
    engine = make_engine(num_pages=40, max_model_len=64, cache=CacheSettings(eviction="kvflow"))
    chat(engine, [5] * 40, session_id="main")
    chat(engine, [7] * 40, session_id="older")
    chat(engine, [6] * 40, session_id="sub", parent_session_id=parent)
    chat(engine, [5] * 40, session_id="main")
    chat(engine, [8] * 58, session_id="new")  # three of the four fit
    assert engine.stats.num_evicted_blocks > 0
    is_released = parent is not None
    assert engine.stats.ended_histories["parent"] == is_released
    num_cached = chat(engine, [7] * 40, session_id="older").stats.num_cached_tokens
    assert (num_cached >= 36) == is_released
