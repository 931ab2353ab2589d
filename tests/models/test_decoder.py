"""One decoder layer, and the embedding and head around the layers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.decoder import DecoderLayer, EmbedAndHead
from kvflow_jax.models.ops import XLA_ON_CPU
from kvflow_jax.models.rope import RopeConfig, rope_angles

CONFIG = ModelConfig(
    family="llama",
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope=RopeConfig(),
    tie_embeddings=True,
    max_model_len=32,
)
NUM_TOKENS = 6
HIDDEN = np.random.default_rng(0).normal(size=(NUM_TOKENS, 16)).astype(np.float32)


def build(kind, config):
    return kind(config, ops=XLA_ON_CPU, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))


@partial(jax.jit, static_argnames=("definition", "config"))
def call(definition, weights, hidden, index, config):
    """Compile once for all weights and inputs of a definition."""
    spec = PoolSpec(config.num_layers, 2, 16, config.num_kv_heads, config.head_dim)
    positions = np.arange(NUM_TOKENS, dtype=np.int32)
    metadata = AttentionMetadata(
        page_table=np.array([[1]], np.int32),
        query_start=np.array([0], np.int32),
        query_len=np.array([NUM_TOKENS], np.int32),
        write_kv_slots=16 + positions,
        num_decode=0,
        tile=NUM_TOKENS,
    )
    angles = rope_angles(config.ropes, config.head_dim, positions)
    layer = nnx.merge(definition, weights)
    return layer(hidden, angles, index, metadata, KVPool.zeros(spec))[0]


def run(layer, config, hidden=HIDDEN, index=0):
    """Return a layer's output for one tile of a sequence from its start."""
    return np.asarray(call(*nnx.split(layer), hidden, np.int32(index), config))


def test_a_token_does_not_depend_on_later_tokens():
    layer = build(DecoderLayer, CONFIG)
    changed = HIDDEN.copy()
    changed[4:] += 1
    before, after = run(layer, CONFIG), run(layer, CONFIG, changed)
    np.testing.assert_allclose(after[:4], before[:4], atol=1e-6)
    assert np.abs(after[4:] - before[4:]).max() > 0.1


def test_out_norms_apply_before_the_residual_addition():
    config = replace(CONFIG, out_norms=True)
    layer = build(DecoderLayer, config)
    for norm in (layer.attention_out_norm, layer.mlp_out_norm):
        norm.weight[...] = jnp.zeros(16)
    np.testing.assert_array_equal(run(layer, config), HIDDEN)


def test_a_layer_that_normalises_only_its_outputs_ignores_the_scale_of_its_weights():
    config = replace(CONFIG, in_norms=False, out_norms=True)
    layer = build(DecoderLayer, config)
    assert layer.attention_norm is layer.mlp_norm is None
    outs = []
    for _ in range(2):
        for part in (layer.attention.o_proj, layer.mlp.down_proj):
            part.weight[...] = part.weight[...] * 1000
        outs.append(run(layer, config))
    np.testing.assert_allclose(*outs, atol=1e-3)
    assert np.abs(outs[0] - HIDDEN).max() > 0.5


@pytest.mark.parametrize("qk_norm", ["", "head", "projection"])
def test_qk_norm_removes_the_scale_of_queries_and_keys(qk_norm):
    config = replace(CONFIG, qk_norm=qk_norm)
    layer = build(DecoderLayer, config)
    weight = layer.attention.qkv_proj.weight
    weight[...] = weight[...] * 10
    before = run(layer, config)
    q_size, head_dim = config.num_heads * config.head_dim, config.head_dim

    def change(columns):
        original = weight[...]
        weight[...] = original.at[:, :columns].multiply(5)
        difference = np.abs(run(layer, config) - before).max()
        weight[...] = original
        return difference

    is_unchanged = change(q_size) < 1e-4
    assert is_unchanged == bool(qk_norm)
    # The norm over all heads keeps the proportions of the heads.
    is_unchanged = change(head_dim) < 1e-4
    assert is_unchanged == (qk_norm == "head")


def test_layers_with_a_window_use_the_local_rope():
    local = RopeConfig(theta=100.0)
    config = replace(CONFIG, windows=(0, 32), local_rope=local)
    layer = build(DecoderLayer, config)
    weight = layer.attention.qkv_proj.weight
    weight[...] = weight[...] * 20
    for index, rope in enumerate((CONFIG.rope, local)):
        plain_config = replace(CONFIG, rope=rope)
        plain = build(DecoderLayer, plain_config)
        plain.attention.qkv_proj.weight[...] = weight[...]
        expected = run(plain, plain_config)
        np.testing.assert_allclose(run(layer, config, index=index), expected, atol=1e-5)


def test_embeddings_are_scaled_and_tied_to_the_head():
    config = replace(CONFIG, embed_scale=4.0)
    module = build(EmbedAndHead, config)
    tokens = jnp.array([3, 7])
    hidden, (cos, sin) = module.embed_tokens(tokens, jnp.array([0, 1]))
    table = np.asarray(module.embed.weight[...])
    np.testing.assert_allclose(hidden, 4 * table[[3, 7]], atol=1e-6)
    assert cos.shape == sin.shape == (1, 2, 1, config.head_dim // 2)
    assert module.lm_head is None
    scale = 1 / np.sqrt(np.mean(HIDDEN**2, axis=-1, keepdims=True) + config.rms_norm_eps)
    np.testing.assert_allclose(module.logits(HIDDEN), HIDDEN * scale @ table.T, atol=1e-5)


def test_an_untied_head_has_its_own_weights():
    module = build(EmbedAndHead, replace(CONFIG, tie_embeddings=False))
    module.lm_head.weight[...] = jnp.zeros((20, 16))
    np.testing.assert_array_equal(module.logits(HIDDEN), np.zeros((NUM_TOKENS, 20)))
