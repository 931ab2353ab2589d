"""Who calls, without a word about it."""

import pytest

from kvflow_jax.control.readers import RECOGNISED, SessionReader
from kvflow_jax.control.recognition.caller_recognizer import (
    MAX_HISTORY,
    RUN_TTL_S,
    NextCall,
)
from kvflow_jax.workflow.hints import Hints
from tests.support.recognised_calls import RecognisedCalls, run_of


@pytest.fixture
def caller():
    return RecognisedCalls()


def test_a_prompt_that_holds_an_answer_is_of_its_run_whenever_it_comes(caller):
    plans = [caller.call("plan", caller.new()) for _ in range(4)]
    caller.now = 300.0
    for plan, answer in reversed(plans):
        code, _ = caller.call("code", caller.new(), answer, caller.new(5))
        assert code.previous == plan.number
        assert code.hints.agent_id != plan.hints.agent_id
        assert code.history[-1] == plan.hints.agent_id


def test_runs_that_begin_together_are_told_apart_by_their_answers(caller):
    begun = [caller.begin("plan", caller.new()) for _ in range(4)]
    answers = [caller.end(plan) for plan in begun]
    codes = [caller.begin("code", answer) for answer in answers]
    texts = [caller.end(code) for code in codes]
    tests = [caller.begin("test", text) for text in texts]
    assert [test.previous for test in tests] == [code.number for code in codes]
    assert len(set(map(run_of, tests))) == 4
    assert {len(test.history) for test in tests} == {2}


def test_parallel_calls_that_hold_one_answer_are_of_one_run(caller):
    plan, answer = caller.call("plan", caller.new())
    code, test = caller.begin("code", answer), caller.begin("test", answer)
    assert run_of(code) == run_of(test) == run_of(plan)
    write = caller.begin("write", caller.end(code), caller.end(test))
    assert run_of(write) == run_of(plan)
    assert len(write.history) == 3


def test_a_continued_history_has_its_run_its_agent_and_its_session(caller):
    task = caller.new()
    first, answer = caller.call("plan", task)
    second = caller.begin("plan", task, answer, caller.new(), num_system=None)
    assert second.previous == first.number
    assert second.hints.agent_id == first.hints.agent_id
    assert second.hints.session_id == first.hints.session_id is not None
    assert second.hints.session_id.startswith(RECOGNISED)


def test_what_a_client_says_comes_first(caller):
    _, answer = caller.call("plan", caller.new())
    hints = Hints(agent_id="coder", workflow_id="run", session_id="chat")
    code, text = caller.call("code", answer, hints=hints)
    assert code.hints == hints
    # An answer of a named run leads to it.
    test = caller.begin("test", text)
    assert run_of(test) == "run"
    assert test.history == ("coder",)


def test_nothing_is_known_across_tenants(caller):
    _, answer = caller.call("plan", caller.new(), tenant="a")
    code = caller.begin("code", answer, tenant="b")
    assert code.previous is None
    assert code.history == ()


def test_a_call_continues_the_run_whose_order_it_fits(caller):
    fits = {"plan": "code", "code": "test"}
    names = {}

    def next_calls(tenant, history):
        role = next((r for r, name in names.items() if history and name == history[-1]), None)
        return {names[fits[role]]: NextCall(0.9, 1.0)} if fits.get(role) in names else {}

    caller = RecognisedCalls(next_calls)
    for role in ("plan", "code", "test"):
        names[role] = caller.call(role, caller.new())[0].hints.agent_id
    caller.now = 1000.0
    plan, _ = caller.call("plan", caller.new())
    code, _ = caller.call("code", caller.new())
    caller.now += 1.0
    assert run_of(code) == run_of(plan)
    again, _ = caller.call("code", caller.new())
    test = caller.begin("test", caller.new())
    assert test.previous is None
    assert run_of(test) in (run_of(code), run_of(again))


def test_a_call_long_after_the_last_begins_a_run(caller):
    plan, _ = caller.call("plan", caller.new())
    caller.now = 60.0
    assert run_of(caller.begin("code", caller.new())) != run_of(plan)


def test_a_run_that_seemed_to_go_on_is_parted_by_an_answer(caller):
    first, answer = caller.call("plan", caller.new())
    second, _ = caller.call("plan", caller.new())
    assert run_of(second) == run_of(first)  # it came at once
    code = caller.begin("code", answer)
    assert run_of(code) != run_of(second)
    assert code.history == (*first.history, first.hints.agent_id)
    test = caller.begin("test", answer)
    assert run_of(test) == run_of(code)


def test_an_answer_that_was_broken_off_leads_nowhere(caller):
    plan = caller.begin("plan", caller.new())
    answer = caller.end(plan, is_done=False)
    assert caller.begin("code", answer).previous is None


def test_a_prompt_that_quotes_another_runs_answers_stays_with_its_own(caller):
    _, quoted = caller.call("plan", caller.new())
    caller.now = 100.0
    task = caller.new()
    own, answer = caller.call("plan", task)
    code = caller.begin("plan", task, answer, quoted, num_system=None)
    assert code.previous == own.number


def test_calls_that_a_mistaken_run_took_in_stay_with_their_own(caller):
    """Also those that depend on others than the call that parted the runs."""
    plan, plans = caller.call("plan", caller.new())
    _, text = caller.call("code", plans)
    other, _ = caller.call("plan", caller.new())
    assert run_of(other) == run_of(plan)  # it came at once
    late = caller.begin("test", plans)
    assert run_of(late) != run_of(other)
    write = caller.begin("write", text)
    assert run_of(write) == run_of(late)


def test_what_two_runs_have_answered_that_seemed_to_be_one_tells_nothing(caller):
    common = caller.new()
    first = caller.begin("plan", caller.new())
    caller.end(first, common)
    second = caller.begin("plan", caller.new())
    caller.end(second, common)
    assert run_of(second) == run_of(first)  # it came at once
    assert caller.begin("code", common).previous is None


def test_a_run_that_was_quiet_for_long_is_not_continued(caller):
    slow = {"prefix": NextCall(1.0, 10 * RUN_TTL_S)}
    caller = RecognisedCalls(lambda tenant, history: dict.fromkeys(history, slow["prefix"]))
    plan, _ = caller.call("plan", caller.new())
    caller.now = RUN_TTL_S
    again, _ = caller.call("plan", caller.new())
    assert run_of(again) == run_of(plan)
    caller.now += RUN_TTL_S + 1
    assert run_of(caller.begin("plan", caller.new())) != run_of(plan)


def test_agents_that_share_a_session_are_told_apart_by_their_prompts(caller):
    hints, task = Hints(session_id="chat"), caller.new()
    plan, _ = caller.call("plan", task, hints=hints)
    code, _ = caller.call("code", caller.new(), hints=hints)
    assert code.hints.agent_id != plan.hints.agent_id
    assert run_of(code) == run_of(plan)
    again = caller.begin("plan", task, caller.new(), hints=hints)
    assert again.hints.agent_id == plan.hints.agent_id
    assert run_of(again) == run_of(plan)


def test_a_quotation_in_another_run_ends_no_conversation(caller):
    for _ in range(4):
        _, answer = caller.call("code", caller.new())
        caller.call("write", answer)
    _, answer = caller.call("code", caller.new())
    other = Hints(workflow_id="other")
    assert caller.begin("write", answer, hints=other).ended == ()
    assert caller.begin("write", answer).ended == ()  # it is excluded from now on


def test_agents_whose_calls_are_never_continued_keep_no_history(caller):
    kept = [caller.call("plan", caller.new())[0].hints.session_id for _ in range(8)]
    assert kept[0] is not None
    assert kept[-1] is None


def test_agents_that_are_named_keep_histories_once_one_was_continued(caller):
    hints, task = Hints(agent_id="a", workflow_id="w"), caller.new()
    first, answer = caller.call("plan", task, hints=hints)
    assert first.hints.session_id is None
    second, _ = caller.call("plan", task, answer, caller.new(), hints=hints)
    assert second.hints.session_id is not None


def test_conversations_end_with_the_use_of_their_answer(caller):
    for _ in range(4):
        code, answer = caller.call("code", caller.new())
        caller.call("write", answer)
    code, answer = caller.call("code", caller.new())
    write = caller.begin("write", answer)
    assert write.ended == (
        SessionReader("", code.hints.session_id or f"{RECOGNISED}{code.number}"),
    )


def test_histories_are_bounded(caller):
    for _ in range(3 * MAX_HISTORY):
        last, _ = caller.call("plan", caller.new(), hints=Hints(workflow_id="w"))
    assert len(last.history) == MAX_HISTORY


def test_memory_is_bounded(caller):
    for i in range(3000):
        caller.now += 1.0
        caller.call(["plan", "code"][i % 2], caller.new(), num_system=None)
    assert caller.recognizer.usage.num_bytes < 8 << 20
    for i in range(200):
        caller.call("plan", caller.new(), tenant=f"tenant{i}")
    assert caller.recognizer.usage.num_bytes < 64 << 20


def test_branches_that_began_alike_are_told_apart_by_their_answers(caller):
    task = caller.new()
    plan, text = caller.call("plan", task)
    begun = [caller.begin("code", task, text) for _ in range(8)]
    answers = [caller.end(code) for code in begun]
    for code, answer in reversed(list(zip(begun, answers, strict=True))):
        again = caller.begin("code", task, text, answer, caller.new(), num_system=None)
        assert again.previous == code.number
        assert run_of(again) == run_of(plan)
        assert again.ended == ()
