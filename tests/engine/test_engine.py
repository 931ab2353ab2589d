"""The engine's loop over a runner whose tokens depend on every block that it reads."""

import pytest

from kvflow_jax.errors import InvalidRequestError, StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus
from tests.support.token_runner import (
    EOS,
    Client,
    cold_tokens,
    make_engine,
    prompt_without_eos,
    run,
)


def test_a_finished_request_leaves_no_lease():
    engine = make_engine()
    client = Client(engine, prompt_without_eos(21))
    run(engine)
    assert client.tokens == client.cold
    assert client.reason is FinishReason.LENGTH
    assert engine.cache.num_leased == 0
    assert client.stats.num_prompt_tokens == 21
    assert client.stats.num_output_tokens == 6


def test_a_repeated_prompt_comes_from_the_cache_but_its_last_token_is_computed():
    engine = make_engine()
    prompt = prompt_without_eos(24)
    first = Client(engine, prompt)
    run(engine)
    again = Client(engine, prompt)
    longer = Client(engine, prompt + first.tokens + [9, 9])
    run(engine)
    assert again.tokens == first.tokens == again.cold
    assert again.stats.num_cached_tokens == 20  # five of six pages: one token must be computed
    assert longer.stats.num_cached_tokens == 28  # output is cached too
    assert longer.tokens == longer.cold


def test_the_end_of_text_token_ends_a_request_unless_ignored():
    engine = make_engine(max_model_len=256, num_pages=80)
    prompt = next(
        p
        for seed in range(500)
        if EOS in cold_tokens(p := prompt_without_eos(5, seed, 1), 30, ignore_eos=True)
    )
    client = Client(engine, prompt, max_tokens=100)
    ignoring = Client(engine, prompt, max_tokens=100, ignore_eos=True)
    run(engine)
    assert client.tokens == client.cold
    assert client.tokens[-1] == EOS
    assert client.reason is FinishReason.STOP
    assert ignoring.tokens == ignoring.cold
    assert len(ignoring.tokens) == 100


def test_the_context_bounds_the_output():
    engine = make_engine(max_model_len=32)
    client = Client(engine, prompt_without_eos(25, max_tokens=10), max_tokens=1000, ignore_eos=True)
    run(engine)
    assert len(client.tokens) == 7
    assert client.reason is FinishReason.LENGTH
    with pytest.raises(InvalidRequestError, match="context length is 32 tokens"):
        Client(engine, [1] * 32)


def test_decode_steps_run_ahead_of_the_host():
    engine = make_engine()
    Client(engine, prompt_without_eos(5), ignore_eos=True)
    run(engine)
    sources = [b.token_source[0] for b in engine.runner.batches if b.shape.num_tiles == 0]
    assert sources.count(-1) == 1  # of the first step after the prompt; then the device's samples
    assert len(sources) == 5


def test_an_abort_at_any_step_releases_the_lease():
    for steps in range(8):
        engine = make_engine()
        client = Client(engine, prompt_without_eos(30), max_tokens=20)
        other = Client(engine, prompt_without_eos(9, 1))
        for _ in range(steps):
            engine.step()
        engine.abort(client.id)
        engine.check_integrity()
        run(engine)
        assert client.reason is FinishReason.ABORT
        assert other.tokens == other.cold
        assert engine.cache.num_leased == 0
        engine.abort(client.id)  # a second abort does nothing


def test_requests_with_different_salts_share_no_prefix():
    engine = make_engine()
    prompt = prompt_without_eos(24)
    first = Client(engine, prompt, salt="a")
    run(engine)
    second = Client(engine, prompt, salt="b")
    third = Client(engine, prompt, salt="a")
    run(engine)
    assert first.stats.num_cached_tokens == second.stats.num_cached_tokens == 0
    assert third.stats.num_cached_tokens == 20


def test_the_cache_is_flushed_only_without_requests():
    engine = make_engine()
    Client(engine, prompt_without_eos(24))
    engine.step()
    assert not engine.flush_cache()
    run(engine)
    assert engine.stats.num_blocks_cached > 0
    assert engine.flush_cache()
    assert engine.stats.num_blocks_cached == 0
    engine.check_integrity()


def test_a_failed_dispatch_fails_only_the_requests_of_the_step():
    engine = make_engine()
    kept = Client(engine, prompt_without_eos(24))
    run(engine)
    failing = Client(engine, kept.prompt + prompt_without_eos(12, 3))
    engine.runner.fail_submit = RuntimeError("out of memory")
    run(engine)
    assert failing.reason is FinishReason.ERROR
    assert isinstance(failing.outputs[-1].error, StepFailedError)
    again = Client(engine, failing.prompt)
    run(engine)
    # The blocks of the failed step are not in the index; those indexed before still are.
    assert again.stats.num_cached_tokens == 24
    assert again.tokens == again.cold


def test_waiting_requests_survive_a_failed_dispatch():
    engine = make_engine(max_num_seqs=1)
    clients = [Client(engine, prompt_without_eos(9, seed)) for seed in range(3)]
    engine.runner.fail_submit = RuntimeError("out of memory")
    assert engine.step()  # a failed dispatch is no idle iteration
    run(engine)
    assert clients[0].reason is FinishReason.ERROR
    assert [c.tokens for c in clients[1:]] == [c.cold for c in clients[1:]]


def test_a_step_that_fails_on_the_device_fails_all_requests_and_empties_the_cache():
    engine = make_engine()
    clients = [Client(engine, prompt_without_eos(9, seed), max_tokens=20) for seed in range(3)]
    for _ in range(3):
        engine.step()
    engine.runner.fail_result = RuntimeError("device lost")
    run(engine)
    assert {c.reason for c in clients} == {FinishReason.ERROR}
    assert engine.stats.num_blocks_leased == engine.stats.num_blocks_cached == 0
    again = Client(engine, clients[0].prompt)
    run(engine)
    assert again.tokens == again.cold
    assert again.stats.num_cached_tokens == 0


def test_a_callback_that_raises_aborts_its_own_request_only():
    engine = make_engine()
    other = Client(engine, prompt_without_eos(9))

    def broken(output):
        raise RuntimeError("bug in the callback")

    params = SamplingParams(temperature=0.0, max_tokens=5)
    engine.add(RequestSpec(prompt_without_eos(9, 1), params), broken)
    run(engine)
    assert other.tokens == other.cold
    assert engine.cache.num_leased == 0


def test_a_failed_dispatch_unpublishes_a_block_that_two_requests_compute():
    # A prompt of one page: both compute its block, in one step, and only one copy is indexed.
    engine = make_engine()
    alike = [Client(engine, [1, 3, 0, 5]) for _ in range(2)]
    engine.runner.fail_submit = RuntimeError("out of memory")
    run(engine)
    assert {c.reason for c in alike} == {FinishReason.ERROR}
    again = Client(engine, [1, 3, 0, 5, 6])
    run(engine)
    assert again.stats.num_cached_tokens == 0
    assert again.tokens == again.cold


def test_a_failed_dispatch_fails_the_requests_that_lease_its_blocks():
    # The second is admitted with blocks that the first is to fill, and has no rows in the step.
    engine = make_engine(max_prefill_tokens=8, tile=8, max_model_len=64)
    first = Client(engine, [9] * 8 + [1])
    second = Client(engine, [9] * 8 + [2] * 9)
    engine.runner.fail_submit = RuntimeError("out of memory")
    run(engine)
    for client in (first, second):
        assert client.reason is FinishReason.ERROR or client.tokens == client.cold


def test_hints_that_cannot_be_used_never_fail_a_request():
    engine = make_engine()

    def broken(*args, **kwargs):
        raise RuntimeError("bug in the controller")

    engine.controller.on_request_added = engine.controller.on_request_finished = broken
    client = Client(engine, prompt_without_eos(9), hints=Hints(workflow_id="run", agent_id="a"))
    run(engine)
    assert client.tokens == client.cold
    assert client.stats.hint_status is HintStatus.IGNORED


def test_counters_survive_a_restart_with_an_empty_cache():
    engine = make_engine()
    Client(engine, prompt_without_eos(24))
    run(engine)
    before = engine.stats
    engine.fail_all(StepFailedError("injected"))
    assert engine.stats.prompt_tokens == before.prompt_tokens == 24
    assert engine.stats.num_steps == before.num_steps
    assert engine.stats.num_blocks_cached == 0


@pytest.mark.parametrize("part", ["detokenizer", "stop_strings"])
@pytest.mark.parametrize("method", ["push", "flush"])
def test_a_request_whose_text_cannot_be_read_fails_alone(part, method):
    class Broken:
        def push(self, *args, **kwargs):
            if method == "push":
                raise ValueError("injected")
            return "" if part == "detokenizer" else ("", None)

        def flush(self):
            raise ValueError("injected")

    engine = make_engine()
    good = Client(engine, prompt_without_eos(9, 1))
    bad = Client(engine, prompt_without_eos(9, 2))
    setattr(engine._outputs.requests[bad.id], part, Broken())
    run(engine)
    assert good.tokens == good.cold
    assert bad.reason == FinishReason.ERROR
    assert isinstance(bad.outputs[-1].error, StepFailedError)
    engine.check_integrity()
    aborted = Client(engine, prompt_without_eos(9, 3))
    setattr(engine._outputs.requests[aborted.id], part, Broken())
    engine.abort(aborted.id)
    assert aborted.reason == FinishReason.ABORT


@pytest.mark.parametrize("hook", ["on_request_added", "on_prefill_done", "on_request_finished"])
def test_hints_that_cannot_be_used_fail_no_request(monkeypatch, hook):
    engine = make_engine()

    def fail(*args, **kwargs):
        raise ValueError("injected")

    monkeypatch.setattr(engine.controller, hook, fail)
    client = Client(engine, prompt_without_eos(9), hints=Hints(agent_id="a", workflow_id="w"))
    run(engine)
    assert client.tokens == client.cold


def test_a_model_without_a_tokenizer_has_no_grammars_to_prepare():
    make_engine().prepare_grammars()


def test_a_request_whose_sampler_state_cannot_be_loaded_ends_alone():
    engine = make_engine()

    def fail(request):
        raise RuntimeError("no room")

    engine.runner.load_sequence_state = fail
    others = [Client(engine, prompt_without_eos(9, seed=seed)) for seed in range(2)]
    outputs = []
    params = SamplingParams(max_tokens=4, temperature=0.0, logit_bias={1: 1.0})
    engine.add(RequestSpec([20] * 9, params), outputs.append)
    while engine.step():
        pass
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert "no room" in str(outputs[-1].error)
    assert [other.tokens for other in others] == [other.cold for other in others]
    engine.check_integrity()
