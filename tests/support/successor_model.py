"""A model without weights to speak of: it predicts the successor of each token.

Its KV is the token id, and its hidden state the token's one-hot vector. So a test can tell from
pool and samples which token a step has read from where, and next to nothing compiles.
"""

from types import SimpleNamespace

import jax.numpy as jnp

from kvflow_jax.cache.pool import PoolSpec

VOCAB = 16
POOL = PoolSpec(num_layers=1, num_pages=6, page_size=2, num_kv_heads=1, head_dim=1)
PARAMS = {"embed.weight": jnp.eye(VOCAB), "layers.0.down_proj.weight": jnp.zeros((2, 2))}


class SuccessorModel:
    config = SimpleNamespace(vocab_size=VOCAB, hidden_size=VOCAB)
    dtype = hidden_dtype = "float32"
    embed_and_head_names = ("embed.weight",)
    matrix_names = ("down_proj.weight",)
    vector_names = ()

    def embed_and_head_leaves(self, params):
        return [params["embed.weight"]]

    def matrix_leaves(self, params, layer):
        return [params[f"layers.{layer}.down_proj.weight"]]

    def embed(self, leaves, tokens, positions):
        return leaves[0][tokens], positions

    def run_layers(self, matrices, vectors, first, hidden, angles, metadata, pool):
        kv = hidden.argmax(-1).astype(jnp.float32)[:, None, None]
        return hidden, pool.write(first, metadata.write_kv_slots, kv, kv)

    def run_all_layers(self, params, hidden, angles, metadata, pool):
        return self.run_layers([], [], jnp.int32(0), hidden, angles, metadata, pool)

    def compute_logits(self, leaves, hidden):
        return 20 * jnp.roll(hidden, 1, axis=-1)


MODEL = SuccessorModel()
