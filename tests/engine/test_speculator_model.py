"""Drafts with a model: tokens and logprobs are those without drafts."""

from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.speculation.config import NO_SPECULATION, SpeculativeConfig
from tests.support.tiny_engine import CONFIG, TOLERANCE

PROMPT = np.random.default_rng(0).integers(3, CONFIG.vocab_size, 20).tolist()


def serve(tiny, speculation, num_rounds=3, **params):
    """Return tokens and logprobs of a prompt that is asked several times, and the drafts."""
    plain = tiny.engine()
    sizes: EngineSizes = replace(plain.sizes, speculation=speculation)
    engine = Engine(
        sizes,
        tiny.runner,
        VirtualClock(),
        tokenizer=None,
        vocab_size=CONFIG.vocab_size,
        eos_token_ids=CONFIG.eos_token_ids,
        seed=0,
    )
    tokens, logprobs = [], []
    for _ in range(num_rounds):
        outputs = []
        engine.add(RequestSpec(PROMPT, SamplingParams(max_tokens=40, **params)), outputs.append)
        while engine.step() or not engine.is_idle:
            engine.check_integrity()
        tokens.append([token for output in outputs for token in output.token_ids])
        logprobs += [one for output in outputs for one in output.logprobs]
    return tokens, logprobs, engine.stats.drafts


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 5, "top_k": 50},
        {"temperature": 0.0, "logit_bias": {5: 3.0, 7: -2.0}, "min_tokens": 30},
        {"temperature": 0.6, "seed": 1, "allowed_token_ids": list(range(10, 60))},
        {"temperature": 0.0, "logprobs": 2},
    ],
)
def test_tokens_and_logprobs_are_those_without_drafts(tiny, params):
    plain, plain_logprobs, _ = serve(tiny, NO_SPECULATION, **params)
    drafted, logprobs, drafts = serve(tiny, SpeculativeConfig(num_speculative_tokens=8), **params)
    assert drafted == plain
    assert drafts.num_accepted_tokens > 30
    assert [one.token_id for one in logprobs] == [one.token_id for one in plain_logprobs]
    gaps = [a.logprob - b.logprob for a, b in zip(logprobs, plain_logprobs, strict=True)]
    assert np.abs(gaps or [0]).max() <= TOLERANCE
