"""Completions and streams, over an engine whose tokens are known."""

import queue

import pytest

from kvflow_jax.api.completion import Collector, Completion, Stream
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError, StepFailedError
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats, TokenLogprobs
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus
from tests.support.token_runner import cold_tokens, make_engine

PROMPT = [1, 2, 3, 4, 5]
STATS = RequestStats(9, 8, 4, 1, 3, 0, HintStatus.APPLIED, 0.0, 0.1, 0.2, 0.3, 9)


@pytest.fixture
def engine():
    thread = EngineThread(make_engine())
    yield thread
    thread.close()


def spec(prompt=PROMPT, *, max_tokens=6, hints=None):
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return RequestSpec(prompt, params, hints=hints)


def test_a_completion_joins_the_outputs_of_its_request():
    scores = [TokenLogprobs(token, -0.5) for token in range(4)]
    outputs = [
        Output(0, "Hel", (1, 2), logprobs=tuple(scores[1:3]), prompt_logprobs=(scores[0],)),
        Output(0, "lo", (3,), FinishReason.STOP, STATS, logprobs=(scores[3],), stop_reason="!"),
    ]
    completion = Completion.of(outputs)
    assert (completion.text, completion.token_ids) == ("Hello", (1, 2, 3))
    assert [score.token_id for score in completion.logprobs] == [1, 2, 3]
    assert completion.prompt_logprobs == (scores[0],)
    assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, "!")
    assert (completion.num_cached_tokens, completion.num_cached_host_tokens) == (8, 4)
    assert completion.hint_status is HintStatus.APPLIED


def test_a_collector_reports_only_the_last_output():
    outputs, last = [], queue.SimpleQueue()
    collect = Collector(outputs, last)
    first, final = Output(0, "a", (1,)), Output(0, "b", (2,), FinishReason.LENGTH, STATS)
    collect(first)
    assert last.empty()
    collect(final)
    assert last.get() is final
    assert outputs == [first, final]


def test_a_stream_yields_every_token_and_then_the_statistics(engine):
    outputs = list(Stream(engine, spec()))
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == cold_tokens(PROMPT, len(PROMPT) + 6, ignore_eos=True)
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[-1].stats.num_output_tokens == 6
    assert outputs[0].stats is None


def test_a_stream_passes_its_hints_on(engine):
    *_, last = Stream(engine, spec(hints=Hints(agent_id="planner")))
    # The plain LRU cache of this engine reads none.
    assert last.stats.hint_status is HintStatus.IGNORED


@pytest.mark.parametrize("end", ["close", "collect"])
def test_a_stream_that_is_left_aborts_its_request(engine, end):
    stream = Stream(engine, spec(max_tokens=50))
    next(stream)
    if end == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    del stream
    engine.settle()
    assert engine.stats.num_running == engine.stats.num_blocks_leased == 0


def test_an_invalid_prompt_raises_at_once(engine):
    with pytest.raises(InvalidRequestError):
        Stream(engine, spec([]))


class FailingEngine:
    def submit(self, spec, on_output):
        on_output(Output(7, "", (), FinishReason.ERROR, STATS, StepFailedError("no room")))
        return 7


def test_a_failed_request_raises_its_error_and_ends_the_stream():
    stream = Stream(FailingEngine(), spec())
    with pytest.raises(StepFailedError, match="no room"):
        next(stream)
    assert list(stream) == []


class InterruptedQueue:
    def get(self):
        raise KeyboardInterrupt


def test_ctrl_c_aborts_the_request(engine):
    stream = Stream(engine, spec(max_tokens=50))
    stream._outputs = InterruptedQueue()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    engine.settle()
    assert engine.stats.num_running == 0
    assert list(stream) == []
