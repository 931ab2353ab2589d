"""Speculative decoding through the engine: the tokens are those without drafts, in fewer steps."""

import pytest

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.speculation.config import SpeculativeConfig
from kvflow_jax.workflow.hints import Hints
from tests.support.token_runner import Client, make_engine, prompt_without_eos, run

SPECULATION = SpeculativeConfig(num_speculative_tokens=8, suffix_decoding_corpus_tokens=4096)


def drafting_engine(**kw):
    """Return an engine with drafts, in whose time steps of any size take equally long."""
    kw = {"num_pages": 80, "max_model_len": 128} | kw
    return make_engine(speculation=SPECULATION, clock=VirtualClock(), **kw)


def decode_batches(engine):
    return [batch for batch in engine.runner.batches if not batch.shape.num_tiles]


def test_a_repeated_answer_comes_in_fewer_steps_with_the_same_tokens():
    engine = drafting_engine()
    prompt = prompt_without_eos(20, max_tokens=30)
    first = Client(engine, prompt, max_tokens=30)
    run(engine)
    num_before = len(engine.runner.batches)
    again = Client(engine, prompt, max_tokens=30)
    run(engine)
    assert again.tokens == first.tokens == again.cold
    assert len(engine.runner.batches) - num_before < 10
    drafts = engine.stats.drafts
    assert drafts.num_accepted_tokens > 20
    assert drafts.num_accepted_tokens == sum(drafts.num_accepted_per_position)
    assert drafts.num_draft_tokens >= drafts.num_accepted_tokens
    # Each token of the answer is sampled by the prefill, accepted, or sampled by a step.
    assert engine.stats.generation_tokens == 60


def test_a_draft_that_does_not_hold_changes_no_token():
    engine = drafting_engine()
    tail = prompt_without_eos(9, 5)
    clients = []
    for seed in range(6):
        # The end of each prompt is in the index, followed by another answer.
        clients.append(Client(engine, prompt_without_eos(12, seed) + tail, max_tokens=20))
        run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert engine.stats.drafts.num_drafts > engine.stats.drafts.num_accepted_tokens


def test_blocks_of_rejected_drafts_are_not_indexed_and_those_of_accepted_ones_are():
    engine = drafting_engine()
    prompt = prompt_without_eos(20, max_tokens=30)
    for _ in range(2):
        Client(engine, prompt, max_tokens=30)
        run(engine)
    longer = Client(engine, prompt + engine_tokens(prompt, 30) + [9, 9], max_tokens=10)
    run(engine)
    assert longer.stats.num_cached_tokens == 48
    assert longer.tokens == longer.cold


def engine_tokens(prompt, num):
    return Client(make_engine(max_model_len=128), prompt, max_tokens=num).cold


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_max_tokens_ends_within_an_accepted_run(max_tokens):
    engine = drafting_engine()
    prompt = prompt_without_eos(20, max_tokens=30)
    Client(engine, prompt, max_tokens=30)
    run(engine)
    client = Client(engine, prompt, max_tokens=max_tokens)
    run(engine)
    assert client.tokens == client.cold
    assert len(client.tokens) == max_tokens
    assert client.reason is FinishReason.LENGTH


def test_the_end_of_text_ends_an_accepted_run():
    engine = drafting_engine()
    prompt = next(
        p
        for seed in range(500)
        if 8 < len(Client(engine, p := prompt_without_eos(5, seed), max_tokens=40).cold) < 40
    )
    engine = drafting_engine()
    clients = []
    for _ in range(3):
        clients.append(Client(engine, prompt, max_tokens=40))
        run(engine)
    assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert all(c.reason is FinishReason.STOP for c in clients)
    assert engine.stats.drafts.num_accepted_tokens > 0


def test_an_abort_between_a_draft_and_its_verification_releases_everything():
    for steps in range(1, 8):
        engine = drafting_engine()
        prompt = prompt_without_eos(20, max_tokens=30)
        Client(engine, prompt, max_tokens=30)
        run(engine)
        client = Client(engine, prompt, max_tokens=30)
        for _ in range(steps):
            engine.step()
        engine.abort(client.id)
        engine.check_integrity()
        run(engine)
        assert client.tokens == client.cold[: len(client.tokens)]
        assert engine.cache.num_leased == 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_preemptions_and_drafts_beside_each_other_change_no_token(deterministic):
    engine = drafting_engine(
        num_pages=20, max_num_seqs=4, max_model_len=64, deterministic=deterministic
    )
    prompts = [prompt_without_eos(14 + i, i, max_tokens=24) for i in range(3)]
    for _ in range(3):
        clients = [Client(engine, prompt, max_tokens=24) for prompt in prompts]
        run(engine)
        assert [c.tokens for c in clients] == [c.cold for c in clients]
    assert engine.stats.num_preemptions > 0
    assert engine.stats.drafts.num_accepted_tokens > 0


def test_other_salts_and_tenants_get_no_drafts_of_an_answer():
    for other in ({"salt": "b"}, {"hints": Hints(tenant="t")}, {"tenant": "t"}):
        engine = drafting_engine()
        prompt = prompt_without_eos(20, max_tokens=30)
        Client(engine, prompt, max_tokens=30)
        run(engine)
        Client(engine, prompt, max_tokens=30, **other)
        run(engine)
        assert engine.stats.drafts.num_accepted_tokens == 0


def test_a_step_that_fails_on_the_device_ends_requests_with_drafts():
    engine = drafting_engine()
    prompt = prompt_without_eos(20, max_tokens=30)
    Client(engine, prompt, max_tokens=30)
    run(engine)
    client = Client(engine, prompt, max_tokens=30)
    for _ in range(3):
        engine.step()
    engine.runner.fail_result = RuntimeError("injected")
    run(engine)
    assert client.reason is FinishReason.ERROR
    again = Client(engine, prompt, max_tokens=30)
    run(engine)
    assert again.tokens == again.cold


def test_a_request_that_repeats_nothing_decodes_ahead_of_the_host():
    engine = drafting_engine()
    Client(engine, prompt_without_eos(20, max_tokens=30), max_tokens=30)
    run(engine)
    sources = [int(batch.token_source[0]) for batch in decode_batches(engine)]
    assert sources.count(-1) < 6
    assert engine.stats.drafts.num_accepted_tokens == 0
