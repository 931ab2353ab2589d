"""Which prompts continue the history of an earlier call."""

import numpy as np
import pytest

from kvflow_jax.control.recognition.conversations import (
    MAX_CONVERSATIONS,
    MAX_TTL_S,
    MIN_TTL_S,
    Continuations,
    Conversation,
    Conversations,
)
from kvflow_jax.requests.block_hashes import block_hashes
from tests.support.bare_request import bare_request

PAGE = 4


@pytest.fixture
def conversations():
    return Conversations(PAGE)


def read(prompt):
    request = bare_request(prompt)
    tokens = request.tokens[: request.num_prompt]
    return tokens, block_hashes(request, request.num_prompt, PAGE)


def put(conversations, name, prompt):
    (found,) = conversations.find(name, *read(prompt)) or [Conversation(name, None, 0)]
    conversations.put(found, *read(prompt))


def continued(conversations, prompt):
    names = [found.name for found in conversations.find(None, *read(prompt))]
    return names[0] if len(names) == 1 else names or None


def test_a_prompt_continues_the_longest_one_that_it_begins_with(conversations):
    put(conversations, "short", [1] * 6)
    put(conversations, "long", [1] * 6 + [2] * 8)
    assert continued(conversations, [1] * 6 + [2] * 8 + [3]) == "long"
    assert continued(conversations, [1] * 6 + [3] * 9) == "short"
    assert continued(conversations, [1] * 5 + [3] * 9) is None


def test_the_answer_in_the_history_may_differ_from_what_was_generated(conversations):
    put(conversations, "a", [1] * 9)
    assert continued(conversations, [1] * 9 + [7] * 20) == "a"


def test_a_repeated_prompt_continues_nothing(conversations):
    put(conversations, "a", [1] * 8)
    assert continued(conversations, [1] * 8) is None


def test_a_prompt_may_continue_any_of_those_that_began_alike(conversations):
    put(conversations, "a", [1] * 8)
    put(conversations, "b", [1] * 8)
    assert continued(conversations, [1] * 12) == ["a", "b"]
    put(conversations, "a", [1] * 8 + [2] * 8)
    assert continued(conversations, [1] * 8 + [2] * 9) == "a"


def test_a_conversation_is_continued_at_its_last_prompt(conversations):
    put(conversations, "a", [1] * 8)
    put(conversations, "a", [1] * 8 + [2] * 8)
    assert continued(conversations, [1] * 8 + [3] * 8) is None


def test_prompts_that_conversations_have_in_common_are_forgotten(conversations):
    for i in range(4 * MAX_CONVERSATIONS):
        for name in "ab":
            put(conversations, f"{name}{i}", [i % 50_000] * PAGE)
    assert len(conversations._by_block) <= 2 * MAX_CONVERSATIONS
    put(conversations, "c", [1] * 8)
    assert continued(conversations, [1] * 9) == "c"


def test_a_session_may_have_a_prompt_without_its_history(conversations):
    conversation = Conversation("a", None, 0)
    for num_prompt in (8, 9, 3):  # whole blocks, more than those, less than one
        conversations.put(conversation, *read([1] * num_prompt))
        assert conversations.is_continued(conversation, *read([1] * (num_prompt + 1)))
        for prompt in ([1] * num_prompt, [1, 1], [2] * 12, [1] * (num_prompt - 1) + [2] * 9):
            assert not conversations.is_continued(conversation, *read(prompt))


def test_a_search_reads_no_prompt_whole_for_each_conversation(conversations):
    """The prompts of an agent grow by a block a call, and each ends with a note of the moment."""

    class Tokens(np.ndarray):
        num_read = 0

        def tobytes(self):
            Tokens.num_read += len(self)
            return super().tobytes()

    for num_blocks in range(2, 100):
        put(conversations, str(num_blocks), [1] * PAGE * num_blocks + [7])
    tokens, hashes = read([1] * PAGE * 100)
    assert conversations.find(None, tokens.view(Tokens), hashes) == []
    assert Tokens.num_read < 2 * len(tokens)


def test_the_last_conversation_of_a_prompt_is_that_of_its_last_call(conversations):
    for number, name in enumerate("ba"):
        conversations.put(Conversation(name, None, number), *read([1] * 9))
    assert conversations.last_of(*read([1] * 9)).name == "a"
    assert conversations.last_of(*read([1] * 8)) is None
    assert conversations.last_of(*read([1] * 10)) is None
    assert conversations.last_of(*read([1] * 3)) is None


def test_a_named_conversation_needs_no_history(conversations):
    put(conversations, "a", [1] * 8)
    assert [found.name for found in conversations.find("a", *read([9] * 8))] == ["a"]
    assert conversations.find("b", *read([1] * 12)) == []


def test_prompts_of_less_than_a_block_continue_nothing(conversations):
    put(conversations, "a", [1] * 3)
    assert continued(conversations, [1] * 12) is None


def test_those_continued_least_recently_are_forgotten(conversations):
    for i in range(MAX_CONVERSATIONS + 5):
        put(conversations, str(i), [i] * 8)
    assert len(conversations) == MAX_CONVERSATIONS
    assert continued(conversations, [0] * 9) is None
    assert continued(conversations, [9] * 9) == "9"
    conversations.put(Conversation("new", None, 0), *read([5] * 8))  # as a forgotten one


def test_how_an_agents_calls_continue_is_learned_and_may_change():
    counts = Continuations()
    assert not counts.are_seen
    assert not counts.are_excluded
    for _ in range(4):
        counts.note_call(None, 0.0)
    assert counts.are_excluded
    counts.note_call(Conversation("a", None, 0), 0.0)
    assert counts.are_seen
    for _ in range(200):
        counts.note_call(None, 0.0)
    assert counts.are_excluded


def test_conversations_end_with_the_use_of_their_answers_if_none_is_resumed():
    counts, used = Continuations(), Conversation("a", None, 0, is_used=True)
    for _ in range(4):
        assert not counts.end_with_use
        counts.note_use()
    assert counts.end_with_use
    counts.note_call(used, 0.0)
    assert not counts.end_with_use


def test_how_long_conversations_pause_is_learned():
    counts = Continuations()
    assert counts.ttl_s is None
    for pause_s in (20.0, 30.0) * 10:
        counts.note_call(Conversation("a", None, 0, ended_s=100.0), 100.0 + pause_s)
    assert counts.ttl_s is not None
    certain_s = counts.ttl_s
    assert 40.0 < certain_s < 100.0
    for _ in range(20):  # every other call is the last
        counts.note_call(None, 0.0)
    assert 20.0 < counts.ttl_s < 0.7 * certain_s
    for _ in range(20):
        counts.note_call(Conversation("a", None, 0, ended_s=0.0), 1e6)
    assert counts.ttl_s == MAX_TTL_S
    instant = Continuations()
    for _ in range(20):
        instant.note_call(Conversation("a", None, 0, ended_s=0.0), 0.0)
    assert instant.ttl_s == MIN_TTL_S
