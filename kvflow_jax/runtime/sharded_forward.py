"""The functions of ``forward`` under ``shard_map``, each device on its shard of model and pool.

``model`` is one device's: the model of ``shard_of`` with ``ShardedOps``. Weights and pool are
sharded as in ``models.sharding``, and ``pool.spec`` is that of one shard. All other arrays are
replicated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.model import Leaves, Model, Params
from kvflow_jax.models.rope import Angles
from kvflow_jax.models.sharding import POOL, REPLICATED, weight_spec
from kvflow_jax.runtime import forward
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.forward import RunnerState, SamplerState, StepFns
from kvflow_jax.runtime.sampler import Logprobs


def sharded_step_fns(mesh: Mesh, model: Model) -> StepFns:
    """Return the functions of a step of one device's ``model`` over all devices of ``mesh``."""
    return StepFns(
        partial(run_step, mesh, model),
        partial(embed, mesh, model),
        partial(run_layers, mesh, model),
        partial(sample_tokens, mesh, model),
        partial(score_hidden, mesh, model),
    )


def run_step(
    mesh: Mesh, model: Model, params: Params, state: RunnerState, batch: Batch[jax.Array]
) -> tuple[RunnerState, jax.Array, Logprobs[jax.Array]]:
    """See ``forward.run_step``."""
    state_specs = replace(jax.tree.map(lambda _: REPLICATED, state), pool=_pool_specs(state.pool))
    weight_specs = {name: weight_spec(name, leaf.ndim) for name, leaf in params.items()}
    run = _shard_map(
        mesh,
        partial(forward.run_step, model),
        (weight_specs, state_specs, REPLICATED),
        (state_specs, REPLICATED, REPLICATED),
    )
    out: tuple[RunnerState, jax.Array, Logprobs[jax.Array]] = run(params, state, batch)
    return out


def embed(
    mesh: Mesh,
    model: Model,
    spec: PoolSpec,
    embed_and_head: Leaves,
    last_tokens: jax.Array,
    batch: Batch[jax.Array],
) -> tuple[jax.Array, Angles, AttentionMetadata]:
    """See ``forward.embed``."""
    in_specs = (_leaf_specs(model.embed_and_head_names, embed_and_head), REPLICATED, REPLICATED)
    run = _shard_map(mesh, partial(forward.embed, model, spec), in_specs, REPLICATED)
    out: tuple[jax.Array, Angles, AttentionMetadata] = run(embed_and_head, last_tokens, batch)
    return out


def run_layers(
    mesh: Mesh,
    model: Model,
    matrices: Sequence[Leaves],
    vectors: Leaves,
    first: jax.Array,
    hidden: jax.Array,
    angles: Angles,
    metadata: AttentionMetadata,
    pool: KVPool,
) -> tuple[jax.Array, KVPool]:
    """See ``Model.run_layers``."""
    in_specs = (
        [_leaf_specs(model.matrix_names, own) for own in matrices],
        _leaf_specs(model.vector_names, vectors),
        *(REPLICATED, REPLICATED, REPLICATED, REPLICATED),
        _pool_specs(pool),
    )
    run = _shard_map(mesh, model.run_layers, in_specs, (REPLICATED, _pool_specs(pool)))
    out: tuple[jax.Array, KVPool] = run(matrices, vectors, first, hidden, angles, metadata, pool)
    return out


def sample_tokens(
    mesh: Mesh,
    model: Model,
    embed_and_head: Leaves,
    state: SamplerState,
    hidden: jax.Array,
    batch: Batch[jax.Array],
) -> tuple[SamplerState, jax.Array, Logprobs[jax.Array]]:
    """See ``forward.sample_tokens``."""
    in_specs = (
        _leaf_specs(model.embed_and_head_names, embed_and_head),
        REPLICATED,
        REPLICATED,
        REPLICATED,
    )
    run = _shard_map(mesh, partial(forward.sample_tokens, model), in_specs, REPLICATED)
    out: tuple[SamplerState, jax.Array, Logprobs[jax.Array]] = run(
        embed_and_head, state, hidden, batch
    )
    return out


def score_hidden(
    mesh: Mesh,
    model: Model,
    embed_and_head: Leaves,
    hidden: jax.Array,
    start: jax.Array,
    targets: jax.Array,
) -> Logprobs[jax.Array]:
    """See ``forward.score_hidden``."""
    in_specs = (
        _leaf_specs(model.embed_and_head_names, embed_and_head),
        REPLICATED,
        REPLICATED,
        REPLICATED,
    )
    run = _shard_map(mesh, partial(forward.score_hidden, model), in_specs, REPLICATED)
    scores: Logprobs[jax.Array] = run(embed_and_head, hidden, start, targets)
    return scores


def _shard_map(
    mesh: Mesh, run: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    # Pallas kernels do not declare over which axes their outputs vary, as check_vma requires.
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _leaf_specs(names: Sequence[str], leaves: Leaves) -> list[PartitionSpec]:
    return [weight_spec(name, leaf.ndim) for name, leaf in zip(names, leaves, strict=True)]


def _pool_specs(pool: KVPool) -> KVPool:
    return KVPool(POOL, pool.spec)  # type: ignore[arg-type]
