"""What is kept of a tenant's calls, and for how long."""

import pytest

from kvflow_jax.control.recognition.answer_index import MAX_ANSWERS
from kvflow_jax.control.recognition.conversations import Conversation
from kvflow_jax.control.recognition.prompt_agents import MAX_NODES
from kvflow_jax.control.recognition.tenant_calls import (
    MAX_RUNS,
    Call,
    CallingRun,
    Part,
    TenantCalls,
)

PAGE = 4


@pytest.fixture
def calls():
    return TenantCalls(PAGE)


def part(name):
    return Part(CallingRun(name))


def test_the_run_with_the_last_event_is_last(calls):
    first, second = part("first"), part("second")
    calls.put_part(first)
    calls.put_part(second)
    calls.touch(first.run)
    assert list(calls.runs) == ["second", "first"]
    calls.touch(CallingRun("forgotten"))
    assert len(calls.runs) == 2


def test_a_later_part_of_a_run_replaces_the_one_before(calls):
    first = part("run")
    later = Part(first.run)
    calls.put_part(first)
    calls.put_part(later)
    assert calls.runs["run"] is later


def test_the_oldest_runs_calls_and_agents_are_forgotten(calls):
    one = part("run")
    for number in range(2 * MAX_ANSWERS + 3):
        calls.put_call(Call(number, one, (), Conversation(str(number), None, number)))
    assert calls.part_of(2) is None
    assert calls.part_of(3) is one
    for i in range(MAX_RUNS + 2):
        calls.put_part(part(f"run{i}"))
    assert "run1" not in calls.runs
    assert "run2" in calls.runs
    for i in range(MAX_NODES + 1):
        calls.continuations_of(f"agent{i}")
    assert "agent0" not in calls.continuations


def test_a_continued_conversation_comes_before_answers(calls):
    conversation = Conversation("talk", None, 7)
    call = Call(7, part("run"), (), conversation)
    calls.put_call(call)
    assert calls.previous(conversation, []) is call
    assert calls.previous(None, []) is None


def test_its_memory_grows_with_what_it_knows(calls):
    before = calls.num_bytes
    calls.put_part(part("run"))
    calls.put_call(Call(1, part("run"), (), Conversation("talk", None, 1)))
    calls.continuations_of("agent")
    assert calls.num_bytes > before + 1000
