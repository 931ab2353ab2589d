"""A step in flight, over a runner with prepared results."""

from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.engine.step_in_flight import StepInFlight, load_sequence_states
from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.requests.request import Chunk, Request
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.runtime.sampler import Logprobs
from tests.support.plain_request import make_request

SHAPES = BatchShapes.plan(
    max_num_seqs=4, max_prefill_tokens=16, tile=8, page_size=4, pages_per_seq=8
)


def logprobs_of_rows(num_rows) -> Logprobs:
    """Return logprobs -row, with top tokens 0 to 2 of logprobs -row, -row - 1 and -row - 2."""
    rows = -np.arange(num_rows, dtype=np.float32)
    top_ids = np.tile(np.arange(3, dtype=np.int32), (num_rows, 1))
    return Logprobs(chosen=rows, top_ids=top_ids, top=rows[:, None] - top_ids)


class Handle:
    def __init__(self, sampled, logprobs=None):
        self.sampled, self._logprobs = sampled, logprobs

    def result(self):
        if isinstance(self.sampled, Exception):
            raise self.sampled
        return self.sampled

    def logprobs(self):
        return self._logprobs


class PreparedRunner:
    """Samples 100 plus the row; of several tokens a row, 100 more for each."""

    def __init__(self, error=None, num_tokens=None):
        self.error, self.num_tokens = error, num_tokens
        self.loaded, self.scored = [], []

    def load_sequence_state(self, request):
        self.loaded.append(request)

    def submit(self, batch):
        rows = np.arange(batch.shape.num_rows)
        if self.num_tokens is not None:
            return Handle(np.stack([rows + 100 * (k + 1) for k in range(self.num_tokens)]))
        return Handle(self.error or rows + 100, logprobs_of_rows(len(rows)))

    def score(self, start, targets):
        self.scored.append((start, targets.tolist()))
        return [Handle(logprobs_of_rows(len(targets)))]


def request_of(num_prompt, **params) -> Request:
    return make_request(range(10, 10 + num_prompt), max_tokens=4, **params)


def chunk(request, start, length, *, seq_slot=0, samples=True, is_decode=False) -> Chunk:
    request.seq_slot = seq_slot
    pages = np.arange(1, 1 - (-(start + length) // 4), dtype=np.int32)
    return Chunk(request, start, length, pages, samples, is_decode)


def plan_of(*chunks, admitted=()) -> StepPlan:
    lengths = [c.length for c in chunks if not c.is_decode]
    return StepPlan(chunks=list(chunks), prefill_lengths=lengths, admitted=list(admitted))


def dispatch(plan, runner) -> StepInFlight:
    def submit(_plan, batch):
        return runner.submit(batch)

    return StepInFlight.dispatch(plan, runner, submit, SHAPES, now=1.0, is_ahead=False)


def test_only_chunks_that_sample_have_results():
    whole, part = request_of(5), request_of(9)
    plan = plan_of(chunk(whole, 0, 5), chunk(part, 0, 8, seq_slot=1, samples=False))
    (result,) = dispatch(plan, PreparedRunner()).results()
    assert result.chunk.request is whole
    assert len(result.tokens) == 1
    assert result.logprobs == ()


def test_logprobs_are_cut_to_the_number_that_the_request_wants():
    request = request_of(5, logprobs=2)
    step = dispatch(plan_of(chunk(request, 0, 5)), PreparedRunner())
    (result,) = step.results()
    (token,), (scored,) = result.tokens, result.logprobs
    row = token - 100
    assert scored.token_id == token
    assert scored.logprob == -row
    assert scored.top == ((0, -row), (1, -row - 1))


def test_a_step_of_several_tokens_a_row_returns_the_tokens_of_each_request_in_order():
    requests = [request_of(3), request_of(3)]
    chunks = [
        chunk(request, 3, 1, seq_slot=i, is_decode=True) for i, request in enumerate(requests)
    ]
    results = dispatch(plan_of(*chunks), PreparedRunner(num_tokens=3)).results()
    for result in results:
        first = result.tokens[0]
        assert result.chunk.request in requests
        assert result.tokens == [first, first + 100, first + 200]
    assert len({result.tokens[0] for result in results}) == 2


def test_a_draft_is_accepted_up_to_the_first_token_that_is_not_sampled():
    request = request_of(3, logprobs=1)
    other = chunk(request_of(3), 3, 1, seq_slot=1, is_decode=True)
    for draft, num_accepted in (((100, 101), 2), ((100, 7), 1), ((7, 101), 0)):
        drafted = replace(chunk(request, 2, 1, is_decode=True), draft=draft)
        result, behind = dispatch(plan_of(drafted, other), PreparedRunner()).results()
        assert result.tokens == [100, 101, 102][: num_accepted + 1]
        assert result.num_accepted == num_accepted
        assert [one.logprob for one in result.logprobs] == [0, -1, -2][: num_accepted + 1]
        assert behind.tokens == [103]


def test_sampler_state_is_loaded_for_admitted_requests_that_need_it():
    plain, penalized = request_of(3), request_of(3, presence_penalty=1.0)
    plan = plan_of(
        chunk(plain, 0, 3), chunk(penalized, 0, 3, seq_slot=1), admitted=[plain, penalized]
    )
    runner = PreparedRunner()
    assert load_sequence_states(plan, runner) == []
    assert runner.loaded == [penalized]


def test_requests_whose_sampler_state_cannot_be_loaded_are_named():
    class Refusing(PreparedRunner):
        def load_sequence_state(self, request):
            super().load_sequence_state(request)
            if len(self.loaded) == 1:
                raise error

    error = RuntimeError("no room")
    first, second = (request_of(3, presence_penalty=1.0) for _ in range(2))
    plan = plan_of(chunk(first, 0, 3), chunk(second, 0, 3, seq_slot=1), admitted=[first, second])
    runner = Refusing()
    assert load_sequence_states(plan, runner) == [(first, error)]
    assert runner.loaded == [first, second]


def test_prompt_tokens_are_scored_once_even_if_computed_again():
    request = request_of(6, prompt_logprobs=1)
    runner = PreparedRunner()
    dispatch(plan_of(chunk(request, 0, 4, samples=False)), runner).results()
    assert [score.token_id for score in request.prompt_logprobs] == [11, 12, 13, 14]
    # Preempted, and computed again from the start, now in one chunk.
    dispatch(plan_of(chunk(request, 0, 6)), runner).results()
    assert [score.token_id for score in request.prompt_logprobs] == [11, 12, 13, 14, 15]
    assert [targets for _, targets in runner.scored] == [[11, 12, 13, 14], [11, 12, 13, 14, 15]]


def test_an_error_on_the_device_leaves_the_requests_unchanged():
    request = request_of(5, prompt_logprobs=0)
    step = dispatch(plan_of(chunk(request, 0, 5)), PreparedRunner(RuntimeError("device lost")))
    with pytest.raises(RuntimeError, match="device lost"):
        step.results()
    assert request.prompt_logprobs == []


def test_a_step_ends_a_request_that_has_all_its_tokens_in_flight():
    request = request_of(3)
    step = dispatch(plan_of(chunk(request, 0, 3)), PreparedRunner())
    request.num_in_flight = 3
    assert not step.ends_a_request
    request.num_in_flight = 4
    assert step.ends_a_request
