"""Calls over an engine whose tokens are known: one or many, and what is refused."""

import pytest

from kvflow_jax.api.caller import Caller
from kvflow_jax.api.prompts import PromptEncoder
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError, StepFailedError
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus
from tests.support.agent_cycle import KVFLOW
from tests.support.token_runner import cold_tokens, make_engine

PROMPT = [1, 2, 3, 4, 5]
PARAMS = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
NOTHING = {"hints": None, "progress": False}


@pytest.fixture
def caller():
    thread = EngineThread(make_engine(cache=KVFLOW))
    yield Caller(thread, PromptEncoder(None))
    thread.check_integrity()
    thread.close()


def expected(prompt, max_tokens=6):
    return tuple(cold_tokens(prompt, len(prompt) + max_tokens, ignore_eos=True))


def test_one_prompt_gives_one_completion_and_many_give_a_list_in_order(caller):
    assert caller.generate(PROMPT, PARAMS, **NOTHING).token_ids == expected(PROMPT)
    many = [PROMPT, PROMPT[:3], PROMPT[1:]]
    completions = caller.generate(many, PARAMS, **NOTHING)
    assert [c.token_ids for c in completions] == [expected(prompt) for prompt in many]
    assert caller.generate([], PARAMS, **NOTHING) == []


def test_each_prompt_may_have_its_own_params(caller):
    short = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    first, second = caller.generate([PROMPT, PROMPT], [PARAMS, short], **NOTHING)
    assert (first.token_ids, second.token_ids) == (expected(PROMPT), expected(PROMPT, 2))


def test_a_stream_yields_the_tokens_of_the_completion(caller):
    outputs = list(caller.stream(PROMPT, PARAMS, hints=Hints(agent_id="planner")))
    assert tuple(token for out in outputs for token in out.token_ids) == expected(PROMPT)
    assert outputs[-1].stats.hint_status is HintStatus.APPLIED


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompts": 5}, "prompts"),
        ({"prompts": [0.5]}, "prompt"),
        ({"prompts": ["text"]}, "prompt"),
        ({"prompts": [PROMPT, []]}, "prompt"),
        ({"params": 5}, "params"),
        ({"params": "greedy"}, "params"),
        ({"params": ["greedy"]}, "params"),
        ({"params": [PARAMS, PARAMS]}, "params"),
        ({"hints": "planner"}, "hints"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named_and_no_prompt_runs(caller, change, param):
    call = {"prompts": PROMPT, "params": PARAMS, **NOTHING, **change}
    with pytest.raises(InvalidRequestError) as raised:
        caller.generate(**call)
    assert raised.value.param == param
    assert caller.engine.stats.num_steps == 0
    assert caller.generate(PROMPT, PARAMS, **NOTHING).token_ids == expected(PROMPT)


def test_without_a_tokenizer_conversations_are_refused(caller):
    talk = [{"role": "user", "content": "hi"}]
    for call in (
        lambda: caller.chat(talk, PARAMS, **NOTHING),
        lambda: caller.stream_chat(talk, PARAMS, hints=None),
    ):
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            call()


def test_a_failed_request_raises_its_error_and_aborts_the_others(caller):
    runner = caller.engine._engine.runner
    runner.fail_submit = RuntimeError("out of memory")
    with pytest.raises(StepFailedError, match="out of memory"):
        caller.generate([PROMPT, PROMPT[:2]], PARAMS, **NOTHING)
    assert caller.engine.stats.num_running == caller.engine.stats.num_waiting == 0
