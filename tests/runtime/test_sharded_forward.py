"""The sharded functions of a step compute what those of one device compute.

Here on a mesh of one device; tests/models/test_sharding.py runs a real model on four.
"""

import jax
import numpy as np
from jax.sharding import Mesh

from kvflow_jax.models.sharding import AXIS
from kvflow_jax.runtime import forward
from kvflow_jax.runtime.forward import RunnerState, StepFns
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, score
from kvflow_jax.runtime.sharded_forward import sharded_step_fns
from tests.runtime.test_forward import SHAPES, prefill
from tests.support.successor_model import MODEL, PARAMS, POOL


def run_all(steps, state, batch):
    """Run a step as one function, and once more as its parts."""
    whole = steps.run_step(PARAMS, state, batch)
    leaves = MODEL.embed_and_head_leaves(PARAMS)
    matrices = [MODEL.matrix_leaves(PARAMS, 0)]
    hidden, angles, metadata = steps.embed(POOL, leaves, state.sampler.last_tokens, batch)
    hidden, pool = steps.run_layers(matrices, [], np.int32(0), hidden, angles, metadata, state.pool)
    sampler, tokens, logprobs = steps.sample_tokens(leaves, state.sampler, hidden, batch)
    targets = np.arange(SCORE_CHUNK_LEN, dtype=np.int32) % 16
    scores = steps.score_hidden(leaves, sampler.hidden, np.int32(2), targets)
    return whole, (RunnerState(pool, sampler), tokens, logprobs), scores


def sample_greedily(logits, rows, penalties, token_masks, position):
    """Stand in for ``sample``, which takes seconds to compile and is the same on every device."""
    tokens = logits.argmax(-1).astype(np.int32)
    return tokens, score(logits, tokens)


def test_sharded_functions_equal_those_of_one_device(monkeypatch):
    monkeypatch.setattr(forward, "sample", sample_greedily)
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    batch, state = prefill(), RunnerState.zeros(MODEL, POOL, SHAPES)
    expected = jax.jit(lambda s, b: run_all(StepFns.of(MODEL), s, b))(state, batch)
    sharded = jax.jit(lambda s, b: run_all(sharded_step_fns(mesh, MODEL), s, b))(state, batch)
    for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    whole, in_parts, _ = sharded
    assert whole[1][3] == in_parts[1][3] == 4  # the successor of the prompt's last token
