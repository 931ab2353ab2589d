"""Steps of a model sharded over four devices and on one device must agree; run by test_sharding.

This is a process of its own, because JAX fixes the number of devices when it starts.
"""

import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.models import sharding
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XlaOps
from kvflow_jax.models.rope import RopeConfig
from kvflow_jax.runtime import sharded_forward
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.forward import RunnerState, run_step

NUM_SHARDS = 4
CONFIG = ModelConfig(
    family="llama",
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_embeddings=False,
    max_model_len=64,
    qkv_bias=True,
    out_bias=True,
    qk_norm="head",
    mlp_bias=True,
)
MATRICES = ("proj.weight", "embed.weight", "lm_head.weight")
SHAPES = BatchShapes.plan(
    max_num_seqs=2, max_prefill_tokens=16, tile=8, page_size=8, pages_per_seq=3
)


def batches():
    """Yield a prompt of 13 tokens in two tiles, then two steps that each feed the last sample."""
    rng = np.random.default_rng(0)
    shape = BatchShape(num_tiles=2, num_decode=2, tile=8)
    batch = Batch.empty(shape, SHAPES.pages_per_seq, SHAPES.num_seq_slots)
    batch.tokens[2:15] = rng.integers(0, CONFIG.vocab_size, 13)
    batch.page_table[2:] = [1, 3, 2]
    batch.query_start[2:], batch.query_len[2:] = [0, 8], [8, 5]
    batch.sampling.seq_slot[3] = 0
    yield batch
    for position in (13, 14):
        batch = Batch.empty(BatchShape(0, 2, 8), SHAPES.pages_per_seq, SHAPES.num_seq_slots)
        batch.page_table[0], batch.query_start[0], batch.query_len[0] = [1, 3, 2], position, 1
        batch.token_source[0] = batch.sampling.seq_slot[0] = 0
        yield batch


def in_8_bits(name, weight):
    """Round a matrix to values of 8 bits that every shard keeps: it has the largest of them."""
    largest = float(jnp.abs(weight).max())
    axis = -1 if name in ("embed.weight", "lm_head.weight") else -2
    edges = [slice(None)] * weight.ndim
    edges[axis] = slice(None, None, weight.shape[axis] // NUM_SHARDS)
    return jnp.rint(weight * (127 / largest)).at[tuple(edges)].set(127) * (largest / 127)


def check(config, quantize="none"):
    """Run the steps on one device and on four."""
    whole = Model.build(config, ops=XlaOps(quantize=quantize))
    plain = random_params(Model.build(config), seed=1)
    keys = jax.random.split(jax.random.key(2), len(plain))
    plain = {
        name: jax.random.normal(key, weight.shape) if name.endswith("bias") else 8 * weight
        for key, (name, weight) in zip(keys, plain.items(), strict=True)
    }
    if quantize != "none":
        plain = {
            name: in_8_bits(name, weight) if name.endswith(MATRICES) else weight
            for name, weight in plain.items()
        }
    params = {name: whole.pack(name, weight) for name, weight in plain.items()}
    pool_spec = PoolSpec(config.num_layers, 5, 8, config.num_kv_heads, config.head_dim)
    state = RunnerState.zeros(whole, pool_spec, SHAPES)

    mesh = Mesh(np.array(jax.devices()), (sharding.AXIS,))
    local = sharding.Shards(mesh).local_model(whole)
    sharded_params = {}
    for name, weight in plain.items():
        grouped = sharding.group_columns_by_device(name, weight, config, NUM_SHARDS)
        spec = sharding.weight_spec(name, weight.ndim)
        pack = jax.shard_map(partial(whole.pack, name), mesh=mesh, in_specs=spec, out_specs=spec)
        sharded_params[name] = pack(jax.device_put(grouped, NamedSharding(mesh, spec)))
    sharded_spec = PoolSpec(
        config.num_layers, 5, 8, config.num_kv_heads // NUM_SHARDS, config.head_dim
    )
    sharded_state = RunnerState.zeros(local, sharded_spec, SHAPES)
    data = jax.device_put(state.pool.data, NamedSharding(mesh, sharding.POOL))
    sharded_state = jax.tree.map(
        lambda leaf: data if leaf is sharded_state.pool.data else leaf, sharded_state
    )

    step = jax.jit(partial(run_step, whole))
    sharded_step = jax.jit(partial(sharded_forward.run_step, mesh, local), donate_argnums=1)
    for batch in batches():
        state, tokens, _ = step(params, state, batch)
        sharded_state, sharded_tokens, _ = sharded_step(sharded_params, sharded_state, batch)
        rows = np.flatnonzero(np.asarray(batch.query_len))[-1:]
        np.testing.assert_array_equal(np.asarray(sharded_tokens)[rows], np.asarray(tokens)[rows])
        np.testing.assert_allclose(sharded_state.pool.data, state.pool.data, atol=1e-3)
        live = jnp.abs(state.sampler.hidden).max()
        np.testing.assert_allclose(
            sharded_state.sampler.hidden, state.sampler.hidden, atol=float(1e-4 * live)
        )
    assert np.asarray(state.pool.data).any()
    shards = sharded_state.pool.data.addressable_shards
    assert {shard.data.shape for shard in shards} == {(15, 8, 2, config.head_dim)}


def main():
    check(CONFIG)
    # Norms over all heads, of which each device has some.
    check(replace(CONFIG, qk_norm="projection", in_norms=False, out_norms=True))
    check(CONFIG, quantize="int8")


if __name__ == "__main__":
    sys.exit(main())
