"""The deterministic mode: the same tokens, whatever is in the batch, the cache and the pool."""

from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.runtime.interfaces import WallClock
from kvflow_jax.runtime.runner import ModelRunner
from tests.runtime.test_runner import Collected, run
from tests.support import tiny_engine
from tests.support.native import native_ops
from tests.support.token_runner import Client, FakeTransfers, make_engine
from tests.support.token_runner import run as run_tokens

PAGE, MAX_LEN = 8, 256
CONFIG = replace(tiny_engine.CONFIG, head_dim=16, max_model_len=MAX_LEN)
SHAPES = BatchShapes.plan(
    max_num_seqs=6,
    max_prefill_tokens=64,
    tile=32,
    page_size=PAGE,
    pages_per_seq=MAX_LEN // PAGE,
    deterministic=True,
)
TIERED = CacheSettings(offloads_everything=True, num_host_blocks=200, extent_sizes=(1, 4))
POOL = PoolSpec(CONFIG.num_layers, 400, PAGE, CONFIG.num_kv_heads, 16)


@pytest.fixture(
    scope="module", params=["scan", "unrolled", "float32", "bfloat16", "int8", "int4"], ids=str
)
def runner(request):
    dtype = "float32" if request.param != "bfloat16" else "bfloat16"
    xla = {"scan": XLA, "unrolled": XLA_ON_CPU}
    model = Model.build(CONFIG, dtype, ops=xla.get(request.param) or native_ops(request.param))
    pool = replace(POOL, dtype=dtype, as_bits=dtype != "float32")
    runner = ModelRunner(
        model, random_params(model, seed=5), pool, SHAPES, extent_sizes=TIERED.extent_sizes
    )
    runner.warm_up()
    return runner


def make(runner, num_pages, cache=CacheSettings()):
    runner.reset()
    return Engine(
        EngineSizes(
            MAX_LEN, 1000, replace(runner.pool_spec, num_pages=num_pages + 1), SHAPES, cache
        ),
        runner,
        WallClock(),
        FakeTransfers(),
        tokenizer=None,
        vocab_size=CONFIG.vocab_size,
        seed=0,
    )


def test_tokens_do_not_depend_on_batch_cache_or_preemption(runner):
    rng = np.random.default_rng(0)
    shared = [rng.integers(3, CONFIG.vocab_size, 100).tolist() for _ in range(2)]
    requests = []
    for number in range(16):
        head = shared[number % 2][: int(rng.integers(0, 100))]
        prompt = head + rng.integers(3, CONFIG.vocab_size, int(rng.integers(1, 40))).tolist()
        params = SamplingParams(
            max_tokens=int(rng.integers(20, 90)),
            temperature=(0.0, 1.0, 1.5)[number % 3],
            top_p=(1.0, 0.9)[number % 2],
            repetition_penalty=(1.0, 1.1)[number % 2],
            seed=number,
            ignore_eos=True,
        )
        requests.append((prompt, params))

    engine = make(runner, num_pages=200)
    alone = []
    for prompt, params in requests:
        collected = Collected(engine, prompt, params)
        run(engine)
        alone.append(collected.tokens)
        engine.flush_cache()
    for cache in (CacheSettings(), TIERED):
        engine = make(runner, 46, cache)  # one and a half contexts: requests are preempted
        for order in (range(16), rng.permutation(16)):
            batch = {int(i): Collected(engine, *requests[int(i)]) for i in order}
            run(engine)
            assert {i: collected.tokens for i, collected in batch.items()} == dict(enumerate(alone))
        assert engine.stats.num_preemptions > 0
        assert engine.stats.cached_prompt_tokens > 0
    assert engine.stats.num_loaded_blocks > 0


def test_deterministic_hits_are_whole_tiles_and_outputs_are_not_shared():
    engine = make_engine(deterministic=True)
    prompt = list(range(8, 8 + 27))  # three tiles of eight and three tokens
    first = Client(engine, prompt)
    run_tokens(engine)
    again, longer = Client(engine, prompt), Client(engine, prompt + first.tokens + [9])
    run_tokens(engine)
    assert first.tokens == first.cold == again.tokens
    assert again.stats.num_cached_tokens == longer.stats.num_cached_tokens == 24
    assert longer.tokens == longer.cold
    decodes = [(b.query_len[: b.shape.num_decode] > 0).any() for b in engine.runner.batches]
    prefills = [(b.query_len[b.shape.num_decode :] > 0).any() for b in engine.runner.batches]
    assert not any(a and b for a, b in zip(decodes, prefills, strict=True))


def test_deterministic_decoding_continues_between_the_chunks_of_a_long_prompt():
    engine = make_engine(deterministic=True, max_model_len=64)
    early = Client(engine, range(8, 13), max_tokens=30, ignore_eos=True)
    engine.step()
    late = Client(engine, [8 + i % 40 for i in range(50)])
    for _ in range(10):
        engine.step()
    assert len(early.tokens) >= 4
    run_tokens(engine)
    assert (early.tokens, late.tokens) == (early.cold, late.cold)
