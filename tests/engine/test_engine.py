"""The engine's loop over a runner that notices every wrong block."""

import numpy as np
import pytest

from kvflow_jax.errors import InvalidRequestError, StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.sampling_params import SamplingParams
from tests.support.token_runner import EOS, Client, cold_tokens, make_engine, run


def prompt_without_eos(length, seed=0, max_tokens=6):
    """A prompt whose continuation does not end by itself."""
    rng = np.random.default_rng(seed)
    while True:
        prompt = rng.integers(8, 50, length).tolist()
        if EOS not in cold_tokens(prompt, length + max_tokens, ignore_eos=True):
            return prompt


def test_one_request_gets_its_tokens_and_leaves_nothing_behind():
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


def test_the_end_token_ends_a_text_unless_ignored():
    engine = make_engine(max_model_len=256, num_pages=80)
    prompt = next(
        p
        for seed in range(500)
        if EOS in cold_tokens(p := prompt_without_eos(5, seed, 1), 30, ignore_eos=True)
    )
    client = Client(engine, prompt, max_tokens=100)
    stubborn = Client(engine, prompt, max_tokens=100, ignore_eos=True)
    run(engine)
    assert client.tokens == client.cold
    assert client.tokens[-1] == EOS
    assert client.reason is FinishReason.STOP
    assert stubborn.tokens == stubborn.cold
    assert len(stubborn.tokens) == 100


def test_the_context_bounds_the_output():
    engine = make_engine(max_model_len=32)
    client = Client(engine, prompt_without_eos(25, max_tokens=10), max_tokens=1000, ignore_eos=True)
    run(engine)
    assert len(client.tokens) == 7
    assert client.reason is FinishReason.LENGTH
    with pytest.raises(InvalidRequestError, match="32 tokens and the prompt has 32"):
        Client(engine, [1] * 32)


def test_two_alike_at_once_compute_their_prefix_once():
    engine = make_engine(max_model_len=128, num_pages=64)
    shared = prompt_without_eos(60)
    clients = [Client(engine, [*shared, n], ignore_eos=True) for n in range(3)]
    run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert clients[0].stats.num_cached_tokens == 0
    assert [c.stats.num_cached_tokens for c in clients[1:]] == [60, 60]


def test_the_youngest_makes_room_and_finishes_later_as_if_nothing_had_happened():
    engine = make_engine(num_pages=16, max_model_len=60)
    clients = [
        Client(engine, prompt_without_eos(12, seed), max_tokens=30, ignore_eos=True)
        for seed in range(3)
    ]
    run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert engine.stats.num_preemptions > 0
    assert clients[0].stats.num_preemptions == 0
    assert engine.cache.num_leased == 0


def test_priority_runs_first_and_may_take_the_blocks_of_others():
    engine = make_engine(num_pages=8, max_num_seqs=1, max_model_len=32)
    low = Client(engine, prompt_without_eos(10, 1), ignore_eos=True)
    lower = Client(engine, prompt_without_eos(10, 2), ignore_eos=True)
    high = Client(engine, prompt_without_eos(10, 3), ignore_eos=True, priority=5)
    run(engine)
    ends = [c.stats.finished_s for c in (high, low, lower)]
    assert ends == sorted(ends)


def test_decode_steps_run_ahead_of_the_host():
    engine = make_engine()
    Client(engine, prompt_without_eos(5), ignore_eos=True)
    run(engine)
    sources = [b.token_source[0] for b in engine.runner.batches if b.shape.num_tiles == 0]
    assert sources.count(-1) == 1  # the first after the prompt; then the device feeds itself
    assert len(sources) == 5


def test_a_short_prompt_does_not_wait_for_a_long_one_to_end():
    engine = make_engine(max_model_len=256, num_pages=100, max_prefill_tokens=16)
    decoding = Client(engine, prompt_without_eos(5), max_tokens=12, ignore_eos=True)
    long = Client(engine, prompt_without_eos(200, 1), max_tokens=1)
    run(engine)
    # Its tokens came out while the long prompt was computed chunk by chunk.
    assert decoding.stats.finished_s < long.stats.first_token_s
    assert decoding.tokens == decoding.cold
    assert long.tokens == long.cold


def test_abort_frees_at_any_moment():
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
        engine.abort(client.id)  # again: fine


def test_tenants_do_not_share():
    engine = make_engine()
    prompt = prompt_without_eos(24)
    first = Client(engine, prompt, salt="a")
    run(engine)
    second = Client(engine, prompt, salt="b")
    third = Client(engine, prompt, salt="a")
    run(engine)
    assert first.stats.num_cached_tokens == second.stats.num_cached_tokens == 0
    assert third.stats.num_cached_tokens == 20


def test_flush_waits_for_quiet_and_then_drops_everything():
    engine = make_engine()
    Client(engine, prompt_without_eos(24))
    engine.step()
    assert not engine.flush_cache()
    run(engine)
    assert engine.stats.num_blocks_cached > 0
    assert engine.flush_cache()
    assert engine.stats.num_blocks_cached == 0
    engine.check_integrity()


def test_a_step_that_cannot_be_dispatched_fails_its_requests_alone():
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
    # What the failed step would have written is not in the index; what was there before still is.
    assert again.stats.num_cached_tokens == 24
    assert again.tokens == again.cold


def test_those_that_wait_outlive_a_step_that_cannot_be_dispatched():
    engine = make_engine(max_num_seqs=1)
    clients = [Client(engine, prompt_without_eos(9, seed)) for seed in range(3)]
    engine.runner.fail_submit = RuntimeError("out of memory")
    assert engine.step()  # it did something: it failed
    run(engine)
    assert clients[0].reason is FinishReason.ERROR
    assert [c.tokens for c in clients[1:]] == [c.cold for c in clients[1:]]


def test_a_step_that_fails_on_the_device_ends_everything_and_starts_over():
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


def test_a_broken_listener_ends_its_own_request_only():
    engine = make_engine()
    other = Client(engine, prompt_without_eos(9))

    def broken(output):
        raise RuntimeError("client bug")

    params = SamplingParams(temperature=0.0, max_tokens=5)
    engine.add(np.array(prompt_without_eos(9, 1), np.int32), params, broken)
    run(engine)
    assert other.tokens == other.cold
    assert engine.cache.num_leased == 0


def test_a_failed_step_takes_back_what_two_alike_were_to_share():
    # A prompt of whole pages: both compute its last block, in one step, and only one is indexed.
    engine = make_engine()
    alike = [Client(engine, [1, 3, 0, 5]) for _ in range(2)]
    engine.runner.fail_submit = RuntimeError("out of memory")
    run(engine)
    assert {c.reason for c in alike} == {FinishReason.ERROR}
    again = Client(engine, [1, 3, 0, 5, 6])
    run(engine)
    assert again.stats.num_cached_tokens == 0
    assert again.tokens == again.cold


def test_a_failed_step_ends_those_that_were_given_its_blocks():
    # The second is admitted onto blocks that the first is to fill, and has no room in the step.
    engine = make_engine(max_prefill_tokens=8, tile=8, max_model_len=64)
    first = Client(engine, [9] * 8 + [1])
    second = Client(engine, [9] * 8 + [2] * 9)
    engine.runner.fail_submit = RuntimeError("out of memory")
    run(engine)
    for client in (first, second):
        assert client.reason is FinishReason.ERROR or client.tokens == client.cold
