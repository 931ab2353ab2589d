"""The functions of ``step`` over several devices, each on its part of the model and the pool.

``model`` is what one device computes, ``shard_of`` the whole with ``ShardedOps``; weights are
arranged and cut as ``models.sharding`` says, the pool too, whose ``spec`` is that of one device's
part. All else is whole on every device.
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
from kvflow_jax.runtime.forward import DeviceState, SamplerState, StepFns
from kvflow_jax.runtime.sampler import Logprobs


def sharded_step_fns(mesh: Mesh, model: Model) -> StepFns:
    """The functions of a step on these devices."""
    return StepFns(
        partial(run_step, mesh, model),
        partial(embed, mesh, model),
        partial(run_layers, mesh, model),
        partial(sample_tokens, mesh, model),
        partial(score_hidden, mesh, model),
    )


def run_step(
    mesh: Mesh, model: Model, params: Params, state: DeviceState, batch: Batch
) -> tuple[DeviceState, jax.Array, Logprobs]:
    """See ``forward.run_step``."""
    cut = replace(jax.tree.map(lambda _: REPLICATED, state), pool=_cut_pool(state.pool))
    weights = {name: weight_spec(name, leaf.ndim) for name, leaf in params.items()}
    run = _on(mesh, partial(forward.run_step, model), (weights, cut, REPLICATED), (cut, REPLICATED, REPLICATED))
    out: tuple[DeviceState, jax.Array, Logprobs] = run(params, state, batch)
    return out


def embed(
    mesh: Mesh, model: Model, spec: PoolSpec, ends: Leaves, last_tokens: jax.Array, batch: Batch
) -> tuple[jax.Array, Angles, AttentionMetadata]:
    """See ``forward.embed``."""
    cut = (_cut(model.embed_and_head_names, ends), REPLICATED, REPLICATED)
    run = _on(mesh, partial(forward.embed, model, spec), cut, REPLICATED)
    out: tuple[jax.Array, Angles, AttentionMetadata] = run(ends, last_tokens, batch)
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
    cut = (
        [_cut(model.matrix_names, own) for own in matrices],
        _cut(model.vector_names, vectors),
        *(REPLICATED, REPLICATED, REPLICATED, REPLICATED),
        _cut_pool(pool),
    )
    run = _on(mesh, model.run_layers, cut, (REPLICATED, _cut_pool(pool)))
    out: tuple[jax.Array, KVPool] = run(matrices, vectors, first, hidden, angles, metadata, pool)
    return out


def sample_tokens(
    mesh: Mesh, model: Model, ends: Leaves, state: SamplerState, hidden: jax.Array, batch: Batch
) -> tuple[SamplerState, jax.Array, Logprobs]:
    """See ``forward.sample_tokens``."""
    cut = (_cut(model.embed_and_head_names, ends), REPLICATED, REPLICATED, REPLICATED)
    run = _on(mesh, partial(forward.sample_tokens, model), cut, REPLICATED)
    out: tuple[SamplerState, jax.Array, Logprobs] = run(ends, state, hidden, batch)
    return out


def score_hidden(
    mesh: Mesh,
    model: Model,
    ends: Leaves,
    hidden: jax.Array,
    start: jax.Array,
    targets: jax.Array,
) -> Logprobs:
    """See ``forward.score_hidden``."""
    cut = (_cut(model.embed_and_head_names, ends), REPLICATED, REPLICATED, REPLICATED)
    run = _on(mesh, partial(forward.score_hidden, model), cut, REPLICATED)
    scores: Logprobs = run(ends, hidden, start, targets)
    return scores


def _on(mesh: Mesh, run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    # check_vma: kernels do not say over what their outputs vary.
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _cut(names: Sequence[str], leaves: Leaves) -> list[PartitionSpec]:
    return [weight_spec(name, leaf.ndim) for name, leaf in zip(names, leaves, strict=True)]


def _cut_pool(pool: KVPool) -> KVPool:
    return KVPool(POOL, pool.spec)  # type: ignore[arg-type]
