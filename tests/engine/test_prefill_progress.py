"""What the log and the metrics say about prompts that take several steps."""

import logging

from kvflow_jax.engine.prefill_progress import LOG_S, log_progress, prefill_progress
from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.requests.outputs import PrefillProgress
from kvflow_jax.requests.request import Chunk
from kvflow_jax.workflow.hints import Hints
from tests.support.plain_request import make_request
from tests.support.token_runner import Client, make_engine, prompt_without_eos


def test_the_engine_publishes_the_progress_of_prompts():
    engine = make_engine(max_model_len=256, num_pages=100, max_prefill_tokens=16)
    client = Client(engine, prompt_without_eos(200), max_tokens=2)
    assert engine.stats.prefill == PrefillProgress()
    seen = []
    while not client.reason:
        engine.step()
        seen.append(engine.stats.prefill)
    assert seen[0] == PrefillProgress(1, 200, 16)
    assert [one.num_computed for one in seen[:3]] == [16, 32, 48]
    assert seen[-1] == PrefillProgress()


def test_no_progress_is_left_when_a_client_leaves():
    engine = make_engine(max_model_len=256, num_pages=100, max_prefill_tokens=16)
    client = Client(engine, prompt_without_eos(200))
    engine.step()
    engine.abort(client.id)
    assert engine.stats.prefill == PrefillProgress()


def test_requests_that_decode_are_not_in_prefill():
    request = make_request(range(10))
    request.num_computed = 10
    assert prefill_progress([request]) == PrefillProgress()


def long_prompt(**fields):
    request = make_request(range(1000), 17, **fields)
    request.first_scheduled_s, request.num_cached = 100.0, 200
    return request


def plan_of(request, start, length, *, samples=False):
    return StepPlan(chunks=[Chunk(request, start, length, (), samples, False)])


def test_a_long_prefill_is_logged_once_in_a_while(caplog):
    caplog.set_level(logging.INFO)
    request = long_prompt(hints=Hints(workflow_id="run", agent_id="coder"))
    log_progress(plan_of(request, 200, 100), 100 + LOG_S / 2)
    assert not caplog.messages
    log_progress(plan_of(request, 300, 300), 100 + LOG_S)
    log_progress(plan_of(request, 600, 50), 100 + LOG_S + 1)
    assert caplog.messages == [
        "request 17 of agent 'coder': 600 of 1000 prompt tokens (200 cached) in 10 s, "
        "about 10 s left"
    ]
    log_progress(plan_of(request, 650, 50), 100 + 2 * LOG_S)
    assert len(caplog.messages) == 2


def test_the_end_of_a_prefill_and_decoding_are_not_logged(caplog):
    caplog.set_level(logging.INFO)
    request = long_prompt()
    log_progress(plan_of(request, 900, 100, samples=True), 1000.0)
    log_progress(StepPlan(chunks=[Chunk(request, 1000, 1, (), True, True)]), 1000.0)
    assert not caplog.messages
