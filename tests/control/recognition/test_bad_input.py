"""Unusual and hostile calls: the recogniser stays bounded, and is seldom wrong."""

import random

import pytest

from kvflow_jax.control.readers import SessionReader
from kvflow_jax.control.recognition.answer_index import WINDOW
from kvflow_jax.control.recognition.prompt_agents import MAX_NODES
from kvflow_jax.workflow.hints import Hints, Reuse
from tests.support.memory import traced_bytes
from tests.support.recognised_calls import RecognisedCalls, run_of

MAX_TENANT_BYTES = 16 << 20


@pytest.fixture
def calls():
    return RecognisedCalls()


def unhinted_links(calls, steps):
    """Make calls of several runs in turn; return the true runs of each link's ends.

    Args:
        steps: a run, and what makes its prompt from the answers of all runs so far; by call.
    """
    run_of_call, answers, links = {}, {}, []
    for run, make_prompt in steps:
        calls.now += 1.0
        caller, answer = calls.call(*make_prompt(answers))
        answers[run] = answer
        run_of_call[caller.number] = run
        if caller.previous is not None:
            links.append((run, run_of_call[caller.previous]))
    return links


def test_a_short_answer_that_every_prompt_holds_links_nothing(calls):
    said = calls.new(3)
    for _ in range(40):
        calls.now += 1.0
        caller = calls.begin("plan", calls.new(10), said, calls.new(5))
        calls.end(caller, said)
        assert caller.previous is None


def test_a_long_answer_that_every_run_gives_links_nothing(calls):
    said = calls.new(40)
    callers = []
    for _ in range(8):
        callers.append(calls.begin("plan", calls.new(10)))
        calls.end(callers[-1], said)
        calls.now += 100.0
    for _ in range(20):
        callers.append(calls.begin("code", calls.new(10), said))
        calls.end(callers[-1], said)
    assert all(caller.previous is None for caller in callers)


@pytest.mark.parametrize("quoted_len", [20, 30, 45])
def test_a_run_that_quotes_another_beside_its_own_answers_is_kept_apart(calls, quoted_len):
    tasks = {run: calls.new(20) for run in "ab"}

    def prompt_a(answers):
        return "plan", calls.new(3), tasks["a"], answers.get("a", [])

    def prompt_b(answers):
        quoted = answers["a"][:quoted_len] if "b" in answers else []
        return "code", calls.new(3), tasks["b"], answers.get("b", []), quoted

    links = unhinted_links(calls, [("a", prompt_a), ("b", prompt_b)] * 20)
    assert all(one == other for one, other in links)
    assert links


def test_a_conversation_that_quotes_another_is_kept_apart(calls):
    texts = {run: calls.new(20) for run in "ab"}

    def prompt_a(answers):
        texts["a"] = [*texts["a"], *answers.get("a", []), *calls.new(5)]
        return "plan", texts["a"]

    def prompt_b(answers):
        texts["b"] = [*texts["b"], *answers.get("b", []), *answers["a"]]
        return "code", texts["b"]

    links = unhinted_links(calls, [("a", prompt_a), ("b", prompt_b)] * 20)
    # Only its first prompt has nothing but the other's answer.
    assert [link for link in links if link[0] != link[1]] == [("b", "a")]
    assert len(links) == 19 + 20


def test_quotations_do_not_cross_tenants(calls):
    _, quoted = calls.call("plan", calls.new(), tenant="a")
    for _ in range(5):
        caller, _ = calls.call("code", quoted, tenant="b")
        assert caller.previous is None
        assert "plan" not in caller.history
    # Nor do they spoil the other tenant's links.
    assert calls.begin("code", quoted, tenant="a").previous is not None


@pytest.mark.parametrize("num_behind", [0, 1, 2])
def test_two_apps_with_the_same_prompts_are_not_taken_for_one_another(calls, num_behind):
    """Their answers are the same, too: nothing but time tells them apart."""
    task, script = calls.new(), [calls.new() for _ in range(12)]
    run_of_call, links = {}, []
    for turn in range(len(script) + num_behind):
        begun = []
        for app, step in (("a", turn), ("b", turn - num_behind)):
            if 0 <= step < len(script):
                history = [token for text in script[:step] for token in text]
                begun.append((app, step, calls.begin("plan", task, history)))
        calls.now += 1.0
        for app, step, caller in begun:
            calls.end(caller, script[step])
            run_of_call[caller.number] = app
            if caller.previous is not None:
                links.append((app, run_of_call[caller.previous]))
        calls.now += 1.0
    assert all(one == other for one, other in links)


def test_a_session_that_never_ends_keeps_memory_bounded(calls):
    text = calls.new(10)
    sizes = []
    for turn in range(600):
        calls.now += 1.0
        caller, answer = calls.call("plan", text, hints=Hints(session_id="s"))
        text = [*text, *answer][-400:] if turn % 100 == 99 else [*text, *answer][:400]
        sizes.append(calls.recognizer.usage.num_bytes)
        assert len(caller.history) <= 8
    assert calls.recognizer.usage.num_values == 1
    assert sizes[-1] < MAX_TENANT_BYTES


@pytest.mark.slow
def test_memory_is_bounded_whatever_calls_are_like():
    """Each agent, run, session and answer is another one; a tenant keeps what its bounds say."""

    def make(num_calls):
        calls = RecognisedCalls()
        for i in range(num_calls):
            calls.now += 1.0
            head = calls.new(12)
            named = Hints(workflow_id=f"run{i}", session_id=f"chat{i}", agent_id=f"agent{i}")
            hints = [None, Hints(session_id=f"chat{i}"), named][i % 3]
            # Twice the same prompt.
            for _ in range(2):
                calls.call(head, calls.new(4), num_system=[12, None, 0][i % 3], hints=hints)
        return calls

    size, calls = traced_bytes(lambda: make(2 * MAX_NODES))
    assert size < MAX_TENANT_BYTES
    assert 0.5 < calls.recognizer.usage.num_bytes / size < 2


def test_many_tenants_of_one_call_do_not_displace_the_largest():
    calls = RecognisedCalls(max_bytes=2_000_000)
    for _ in range(50):
        calls.call("plan", calls.new(), tenant="large")
    for i in range(200):
        plan, answer = calls.call("plan", calls.new(), tenant="large")
        for address in range(3):
            calls.call("plan", calls.new(), tenant=f"{i}.{address}")
        assert calls.begin("code", answer, tenant="large").previous == plan.number
        assert calls.recognizer.usage.num_bytes <= 2_000_000
    assert calls.recognizer.usage.num_evicted > 0


@pytest.mark.slow
def test_100_000_agents_keep_memory_bounded(calls):
    sizes = []
    for i in range(100_000):
        calls.now += 0.01
        calls.call([i, i + 1, i % 7] * 4, num_system=12)
        if i % 10_000 == 9_999:
            sizes.append(calls.recognizer.usage.num_bytes)
    assert max(sizes[1:]) < 1.2 * min(sizes[1:]) < MAX_TENANT_BYTES


@pytest.mark.parametrize("num_system", [None, 0, 1])
def test_prompts_of_one_token_and_empty_answers_link_nothing(calls, num_system):
    for i in range(20):
        caller = calls.begin([i % 2], num_system=num_system)
        assert calls.end(caller, []) == []
        assert caller.previous is None


def test_a_huge_prompt_is_searched_to_its_end(calls):
    plan, answer = calls.call("plan", calls.new())
    code = calls.begin("code", calls.new(100_000), answer, calls.new(10))
    assert code.previous == plan.number
    calls.end(code)
    assert calls.recognizer.usage.num_bytes < MAX_TENANT_BYTES


def test_a_call_that_is_aborted_and_sent_again_continues_its_run(calls):
    task = calls.new()
    plan, answer = calls.call("plan", task)
    broken = calls.begin("code", answer)
    calls.end(broken, calls.new(20), is_done=False)
    again, text = calls.call("code", answer)
    assert run_of(broken) == run_of(again) == run_of(plan)
    assert again.run.num_running == 0
    assert calls.begin("test", text).previous == again.number


def test_choices_of_one_prompt_are_of_one_run(calls):
    plan, answer = calls.call("plan", calls.new())
    choices = [calls.begin("code", answer, choice=i) for i in range(4)]
    texts = [calls.end(choice) for choice in choices]
    assert {run_of(choice) for choice in choices} == {run_of(plan)}
    test = calls.begin("test", texts[2])
    assert test.previous == choices[2].number
    # Its agent has called once.
    assert test.history == (plan.hints.agent_id, choices[0].hints.agent_id)


def test_choices_of_a_first_prompt_are_of_one_run_and_join_no_other(calls):
    other, _ = calls.call("plan", calls.new())
    calls.now += 1000.0
    task = calls.new()
    choices = [calls.begin("plan", task, choice=i) for i in range(4)]
    texts = [calls.end(choice) for choice in choices]
    assert {run_of(choice) for choice in choices} == {run_of(choices[0])} != {run_of(other)}
    code = calls.begin("code", texts[3])
    assert code.history == (choices[0].hints.agent_id,)


def test_choices_that_are_not_taken_are_no_conversations_that_end(calls):
    for _ in range(4):
        task = calls.new()
        choices = [calls.begin("plan", task, choice=i) for i in range(16)]
        texts = [calls.end(choice) for choice in choices]
        second = calls.begin("plan", task, texts[3], calls.new())
        assert second.hints.session_id == choices[3].hints.session_id is not None
        calls.end(second)


def test_a_call_that_a_mistaken_run_took_in_may_be_in_progress(calls):
    plan, answer = calls.call("plan", calls.new())
    long = calls.begin("code", answer)
    taken, _ = calls.call("write", calls.new(), hints=None)
    parted, _ = calls.call("test", answer)
    calls.end(long)
    assert {plan.run.num_running, taken.run.num_running, parted.run.num_running} == {0}


@pytest.mark.parametrize(
    "hints",
    [
        Hints(agent_id="coder"),
        Hints(workflow_id="run"),
        Hints(session_id="chat"),
        Hints(agent_id="coder", session_id="chat"),
        Hints(priority=1),
        Hints(session_final=True),
    ],
)
def test_hints_that_are_given_in_part_are_kept_and_completed(calls, hints):
    _, answer = calls.call("plan", calls.new())
    for _ in range(3):
        caller, answer = calls.call("code", answer, hints=hints)
        assert caller.previous is not None
        for name in ("agent_id", "workflow_id", "session_id"):
            given = getattr(hints, name)
            assert given is None or getattr(caller.hints, name) == given
        assert caller.hints.agent_id is not None
        assert caller.hints.workflow_id is not None
        assert caller.hints.priority == hints.priority
        assert caller.hints.session_final == hints.session_final


def test_names_that_clients_give_may_look_recognised(calls):
    plan, _ = calls.call("plan", calls.new())
    hints = Hints(workflow_id=run_of(plan), session_id=plan.hints.session_id)
    caller, _ = calls.call("code", calls.new(), hints=hints)
    assert caller.hints.workflow_id == run_of(plan)
    assert caller.ended == ()


def test_the_id_of_a_request_may_be_used_again(calls):
    first = calls.begin("plan", calls.new(), request_id=7)
    second = calls.begin("plan", calls.new(), request_id=7)
    calls.end(first)
    calls.end(second)
    third, answer = calls.call("plan", calls.new(), request_id=7)
    assert calls.begin("code", answer).previous == third.number


def test_what_is_ended_twice_or_never_began_changes_nothing(calls):
    plan = calls.begin("plan", calls.new())
    request = calls._requests[plan.number]
    calls.end(plan)
    assert calls.recognizer.end_call(request, 5.0, is_done=True) is None
    assert plan.run.num_running == 0


def test_any_order_of_calls_leaves_nothing_in_progress():
    rng = random.Random(3)
    calls = RecognisedCalls()
    running, answers = [], [calls.new()]
    for number in range(3000):
        calls.now += rng.expovariate(1.0)
        if running and rng.random() < 0.5:
            caller = running.pop(rng.randrange(len(running)))
            length = rng.choice([0, 1, WINDOW, WINDOW + 2, 60])
            answers.append(calls.end(caller, calls.new(length), is_done=rng.random() < 0.8))
            continue
        hints = rng.choice([None, None, None, Hints(workflow_id=f"r{number % 5}"), Hints()])
        given = [rng.choice(answers[-20:]) for _ in range(rng.randrange(4))]
        role = rng.choice(["plan", "code", "test", "write"])
        tenant = rng.choice(["", "", "other"])
        running.append(calls.begin(role, *given, hints=hints, tenant=tenant))
    runs = {caller.run for caller in running}
    for caller in running:
        calls.end(caller)
    assert all(run.num_running == 0 for run in runs)
    assert not calls.recognizer._in_progress


@pytest.mark.parametrize(
    ("hints", "is_ended"),
    [
        (Hints(session_id="chat"), True),
        (Hints(session_id="chat", ttl_s=3600.0), False),
        (Hints(session_id="chat", reuse=Reuse.KEEP), False),
        (Hints(reuse=Reuse.KEEP), False),
    ],
)
def test_a_conversation_that_its_client_keeps_does_not_end_with_its_use(calls, hints, is_ended):
    for _ in range(8):
        _, answer = calls.call("plan", calls.new())
        calls.call("code", answer)
    _, answer = calls.call("plan", calls.new(), hints=hints)
    assert bool(calls.begin("code", answer).ended) == is_ended


def test_sessions_that_end_with_the_use_of_their_answer_are_of_their_tenant(calls):
    for tenant in ("a", "b"):
        for _ in range(5):
            _, answer = calls.call("code", calls.new(), tenant=tenant)
            write, _ = calls.call("write", answer, tenant=tenant)
        assert write.ended
        assert all(isinstance(one, SessionReader) and one.tenant == tenant for one in write.ended)
