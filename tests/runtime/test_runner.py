"""The engine over real JAX steps: exactness, sampling, memory, and no compilation once warm."""

import re
import threading

import jax
import numpy as np
import pytest

from experiments.measure import counted_compiles
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.grammar.compiler import GrammarCompiler
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.grammar_engine import TOKENIZER
from tests.support.tiny_engine import CONFIG, EXTENTS

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


class Collected:
    def __init__(self, engine, prompt, params, **kw):
        self.prompt, self.params, self.outputs = list(prompt), params, []
        self.id = engine.add(RequestSpec(prompt, params, **kw), self.outputs.append)

    @property
    def tokens(self):
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def last(self):
        return self.outputs[-1]


def run(engine):
    while not engine.is_idle:
        engine.step()
    engine.check_integrity()
    assert engine.cache.num_leased == 0


def prompts(rng, count, low=1, high=120):
    return [
        rng.integers(3, CONFIG.vocab_size, rng.integers(low, high)).tolist() for _ in range(count)
    ]


def test_greedy_tokens_are_those_of_the_model(tiny):
    engine = tiny.engine()
    asked = [Collected(engine, p, GREEDY) for p in prompts(np.random.default_rng(0), 6)]
    run(engine)
    for one in asked:
        tiny.assert_greedy(one.prompt, one.tokens)


def test_cached_chunked_and_shared_prefixes_change_no_token(tiny):
    rng = np.random.default_rng(1)
    engine = tiny.engine()
    shared = rng.integers(3, CONFIG.vocab_size, 90).tolist()
    tails = prompts(rng, 5, 1, 20)
    first = [Collected(engine, shared + tail, GREEDY) for tail in tails]
    run(engine)
    second = [Collected(engine, shared + tail, GREEDY) for tail in tails]
    run(engine)
    for a, b in zip(first, second, strict=True):
        tiny.assert_greedy(a.prompt, a.tokens)
        tiny.assert_greedy(b.prompt, b.tokens)
        assert b.last.stats.num_cached_tokens >= 88


def test_two_hundred_mixed_requests_with_aborts_in_a_pool_too_small(tiny):
    rng = np.random.default_rng(2)
    engine = tiny.engine(num_pages=64)  # one full context
    shared = rng.integers(3, CONFIG.vocab_size, 60).tolist()
    asked: list[Collected] = []
    for number in range(200):
        prompt = shared[: int(rng.integers(0, 60))] + prompts(rng, 1, 1, 60)[0]
        params = SamplingParams(
            temperature=float(rng.choice([0.0, 0.0, 1.0])), max_tokens=int(rng.integers(1, 60))
        )
        asked.append(Collected(engine, prompt, params))
        if number % 7 == 0:
            engine.abort(asked[int(rng.integers(0, len(asked)))].id)
        if number % 3 == 0:
            engine.step()
        if number % 50 == 0:
            engine.check_integrity()
    run(engine)
    assert engine.stats.num_preemptions > 0
    reasons = {one.last.finish_reason for one in asked}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT}
    for one in asked:
        if one.params.is_greedy:
            tiny.assert_greedy(one.prompt, one.tokens)


def test_a_seed_draws_the_same_whatever_runs_beside_it(tiny):
    params = SamplingParams(temperature=1.0, max_tokens=20, seed=11, ignore_eos=True)
    prompt = list(range(10, 40))
    engine = tiny.engine()
    alone = Collected(engine, prompt, params)
    run(engine)
    others = [Collected(engine, p, GREEDY) for p in prompts(np.random.default_rng(3), 3)]
    crowded = Collected(engine, prompt, params)
    unseeded = Collected(engine, prompt, SamplingParams(temperature=1.0, max_tokens=20))
    run(engine)
    assert crowded.tokens == alone.tokens
    assert unseeded.tokens != alone.tokens
    assert others[0].tokens


def test_nothing_compiles_after_warm_up(tiny):
    engine = tiny.engine()
    rng = np.random.default_rng(4)
    with jax.no_tracing(True), counted_compiles() as compiles:
        for number, prompt in enumerate(prompts(rng, 60)):
            params = SamplingParams(
                temperature=float(number % 3) / 2,
                top_k=(0, 1, 7)[number % 3],
                top_p=(1.0, 0.5)[number % 2],
                max_tokens=1 + number % 9,
                seed=number if number % 2 else None,
                min_p=(0.0, 0.1)[number % 2],
                repetition_penalty=(1.0, 1.1)[number % 2],
                frequency_penalty=(0.0, 0.5, 0.0)[number % 3],
                logit_bias={5: 1.0, number: -3.0} if number % 4 == 0 else {},
                min_tokens=number % 2,
                logprobs=(None, 0, 5)[number % 3],
                prompt_logprobs=(None, 3)[number % 6 == 0],
                top_n_sigma=(0.0, 1.0)[number % 2],
            )
            one = Collected(engine, prompt, params)
            engine.step()
            if number % 5 == 0:
                engine.abort(one.id)
        run(engine)
    assert compiles == []


TIERED = {"num_host_blocks": 200, "extent_sizes": EXTENTS}


@pytest.mark.parametrize(
    "cache",
    [
        CacheSettings(eviction="kvflow", prefetches=True, **TIERED),
        CacheSettings(offloads_everything=True, **TIERED),
    ],
    ids=["kvflow", "hicache"],
)
def test_offloaded_and_loaded_blocks_change_no_token(tiny, cache):
    """Six agents in a cycle; the pool fits the prefixes of three. Nothing compiles."""
    rng = np.random.default_rng(7)
    engine = tiny.engine(num_pages=60, cache=cache)
    ring = Workflow()
    for i in range(6):
        ring.edge(f"agent{i}", f"agent{(i + 1) % 6}")
    fixed = [rng.integers(3, CONFIG.vocab_size, 64).tolist() for _ in range(6)]
    is_done = threading.Event()
    engine.transfers.listen(is_done.set)
    tiny.cold_logits([3])
    with counted_compiles() as compiles:
        for call in range(24):
            hints = Hints(
                workflow_id="w", agent_id=f"agent{call % 6}", graph=ring.freeze(), num_fixed=64
            )
            prompt = fixed[call % 6] + rng.integers(3, CONFIG.vocab_size, 9).tolist()
            one = Collected(engine, prompt, GREEDY, hints=hints)
            while not engine.is_idle:
                is_done.clear()
                if not engine.step():
                    assert engine.is_waiting
                    is_done.wait(10)
            engine.check_integrity()
            tiny.assert_greedy(one.prompt, one.tokens)
            if call >= 6:
                assert one.last.stats.num_cached_tokens == 64
    assert compiles == []
    assert engine.stats.num_loaded_blocks > 0
    assert engine.stats.num_failed_transfers == 0
    engine.transfers.close()


def test_the_pool_is_updated_in_place(tiny):
    runner = tiny.runner
    for shape in (runner.shapes.shapes[0], runner.shapes.shapes[-1]):
        analysis = runner.memory_analysis(shape)
        assert analysis.alias_size_in_bytes >= runner.pool_spec.nbytes
        assert analysis.temp_size_in_bytes < runner.pool_spec.nbytes / 2


def test_a_lost_pool_is_replaced_by_an_empty_one(tiny):
    engine = tiny.engine()
    lost = Collected(engine, range(10, 50), GREEDY)
    engine.step()
    engine.runner._state.pool.data.delete()
    run(engine)
    assert lost.last.finish_reason is FinishReason.ERROR
    again = Collected(engine, range(10, 50), GREEDY)
    run(engine)
    tiny.assert_greedy(again.prompt, again.tokens)


def test_logprobs_and_prompt_logprobs_are_the_models(tiny):
    rng = np.random.default_rng(5)
    engine = tiny.engine()
    params = SamplingParams(max_tokens=6, seed=1, logprobs=4, prompt_logprobs=3, ignore_eos=True)
    prompt = rng.integers(3, CONFIG.vocab_size, 75).tolist()
    plain = Collected(engine, prompt, GREEDY)
    run(engine)
    # The prefix is cached, but must be computed to be scored.
    one = Collected(engine, prompt, params)
    beside = [Collected(engine, p, GREEDY) for p in prompts(rng, 3)]
    run(engine)
    assert plain.outputs[0].logprobs == beside[0].outputs[0].prompt_logprobs == ()
    logits = tiny.cold_logits([*prompt, *one.tokens])
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert one.last.stats.num_cached_tokens == 0
    scored = [score for output in one.outputs for score in (*output.prompt_logprobs,)]
    assert [score.token_id for score in scored] == prompt[1:]
    new = [score for output in one.outputs for score in output.logprobs]
    assert [score.token_id for score in new] == one.tokens
    for position, score in enumerate([*scored, *new]):
        row = exact[position]
        assert abs(score.logprob - row[score.token_id]) < 1e-3
        assert len(score.top) == (3 if position < len(scored) else 4)
        best = np.sort(row)[::-1][: len(score.top)]
        np.testing.assert_allclose([value for _, value in score.top], best, atol=1e-3)
        np.testing.assert_allclose([row[token] for token, _ in score.top], best, atol=1e-3)


def test_penalties_are_exact_after_preemption_and_with_steps_in_flight(tiny):
    """Greedy tokens with strong penalties are the same alone and in a pool that is too small."""
    rng = np.random.default_rng(6)
    engine = tiny.engine(num_pages=40)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=60,
        presence_penalty=2.0,
        frequency_penalty=2.0,
        repetition_penalty=10.0,
        logit_bias={17: -100.0},
        ignore_eos=True,
    )
    asked = [Collected(engine, p, params) for p in prompts(rng, 8, 30, 60)]
    run(engine)
    alone = []
    for one in asked:
        alone.append(Collected(engine, one.prompt, params))
        run(engine)
    assert engine.stats.num_preemptions > 0
    for one, other in zip(asked, alone, strict=True):
        assert one.tokens == other.tokens
        assert 17 not in one.tokens


def test_min_tokens_bans_every_stop_token_until_then(tiny):
    engine = tiny.engine()
    prompt = list(range(10, 40))
    free = Collected(engine, prompt, SamplingParams(temperature=0.0, max_tokens=12))
    run(engine)
    ends = tuple(set(free.tokens))
    params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=ends, min_tokens=5)
    banned = Collected(engine, prompt, params)
    stopped = Collected(
        engine, prompt, SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=ends)
    )
    run(engine)
    assert len(stopped.tokens) == 1
    assert stopped.last.stop_reason == stopped.tokens[0]
    assert len(banned.tokens) >= 5
    assert not set(banned.tokens[:5]) & set(ends)


def test_rows_with_a_grammar_follow_it_and_change_neither_the_others_nor_the_programs(tiny):
    compiler = GrammarCompiler(TOKENIZER, CONFIG.vocab_size, TOKENIZER.eos_token_ids)
    digits = StructuredOutputsParams(regex="[0-9]{12}")
    params = SamplingParams(max_tokens=20, structured_outputs=digits)
    engine, rng = tiny.engine(), np.random.default_rng(5)
    with counted_compiles() as compiles:
        plain = [Collected(engine, p, GREEDY) for p in prompts(rng, 2)]
        asked = [
            Collected(engine, p, params, grammar=compiler.compile(digits)) for p in prompts(rng, 6)
        ]
        run(engine)
    assert not compiles
    for one in plain:
        tiny.assert_greedy(one.prompt, one.tokens)
    for one in asked:
        assert re.fullmatch("[0-9]{12}", TOKENIZER.decode(one.tokens))
        assert one.last.finish_reason is FinishReason.STOP
