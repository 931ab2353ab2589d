"""The engine's programs compiled for chips that are not here, and what their compilers say.

    make portability
    python -m experiments.portability --json FILE

Nothing is allocated and nothing runs: libtpu compiles for a described topology, from shapes alone,
whole steps as ``ModelRunner`` jits them, over the pool that the engine would choose on that chip.
For GPUs, whose compiler needs one, the same steps are lowered. Exits with 1 where a check fails.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

# Before JAX looks for devices: this machine has no TPU, and libtpu need not go and ask for one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.measure import arguments, write_json
from kvflow_jax.batch import Batch, BatchShape
from kvflow_jax.cache.pool import KVPool
from kvflow_jax.config import GIB, EngineConfig, EngineSizes
from kvflow_jax.models import sharding
from kvflow_jax.models.kernels import AUTO, KERNELS, choose_attention
from kvflow_jax.models.kernels.base import Case
from kvflow_jax.models.loading import SHAPES
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.ops import XlaOps
from kvflow_jax.step import DeviceState, run_step, run_step_on_mesh

DTYPE = "bfloat16"
MAX_TEMP_BYTES = 1 * GIB  # a copy of any pool is more
EXTENT_BLOCKS = 16
# What JAX reports as bytes_limit of a chip's memory of 16 and 32 GB, GiB.
MEMORY_GIB = {"v5e": 15.75, "v6e": 31.25}
TARGETS = (("qwen3-0.6b", "v5e", 1), ("llama-3.1-8b", "v6e", 1), ("llama-3.1-8b", "v5e", 4))
# Mosaic GPU writes its kernels for one kind of GPU, and from 0.12 on so does Triton.
GPU = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
GPU_MESH = jax.sharding.AbstractMesh(
    (1,), (sharding.AXIS,), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=GPU
)
# Host memory, or the host at the other end, in a compiled program.
HOST = re.compile(r"S\(5\)|\b(?:in|out)feed\b|is_host_transfer=true|MoveTo(?:Host|Device)")


class CheckError(Exception):
    """A program is not what the engine counts on."""


@dataclass(frozen=True)
class Chip:
    """Stands for a device where the engine asks how much memory is free."""

    platform: str
    bytes_limit: int
    bytes_in_use: int

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.bytes_limit, "bytes_in_use": self.bytes_in_use}


class Target:
    """A model on some chips of a kind, as shapes: what each program is given."""

    def __init__(self, name: str, kind: str, num_chips: int) -> None:
        self.name = f"{name} on {num_chips} {kind}"
        whole = SHAPES[name]
        case = Case("tpu", whole, DTYPE, EngineConfig().page_size)
        attend = choose_attention(AUTO, case)
        devices = topologies.get_topology_desc(f"{kind}:2x2", platform="tpu").devices
        self.mesh = Mesh(np.array(devices[:num_chips]), (sharding.AXIS,))
        self.model = Model.build(whole, DTYPE, ops=XlaOps(attend))
        specs = self.model.specs
        self._step: Callable[..., Any] = run_step
        if num_chips > 1:
            own = sharding.shard_of(whole, num_chips)
            self.model = Model.build(own, DTYPE, ops=sharding.ShardedOps(attend))
            self._step = partial(run_step_on_mesh, mesh=self.mesh)
        self.params: Params = {
            name: self._struct(spec, sharding.weight_spec(name, len(spec.shape)))
            for name, spec in specs.items()
        }
        self.weights_bytes = sum(_bytes_of_one(leaf) for leaf in self.params.values())
        self.bytes_limit = int(MEMORY_GIB[kind] * GIB)
        chip = Chip("tpu", self.bytes_limit, self.weights_bytes)
        self.sizes = EngineSizes.resolve(EngineConfig(), self.model.config, DTYPE, chip)  # type: ignore[arg-type]
        state = jax.eval_shape(
            partial(DeviceState.zeros, self.model, self.sizes.pool, self.sizes.shapes)
        )
        data = state.pool.data
        shape = (*data.shape[:2], data.shape[2] * num_chips, data.shape[3])
        data = self._struct(jax.ShapeDtypeStruct(shape, data.dtype), sharding.POOL)
        state = jax.tree.map(self._struct, state)
        self.state = replace(state, pool=replace(state.pool, data=data))

    def step(self, shape: BatchShape) -> jax.stages.Traced:
        """The step as ``ModelRunner`` jits it, over the batch of one shape."""
        batch = Batch.empty(shape, self.sizes.shapes.pages_per_seq, self.sizes.shapes.num_slots)
        run = partial(self._step, self.model)
        with jax.set_mesh(self.mesh):
            return jax.jit(run, donate_argnames="state").trace(
                params=self.params, state=self.state, batch=jax.tree.map(self._struct, batch)
            )

    def moves(self) -> Iterator[tuple[str, jax.stages.Traced, int]]:
        """Blocks out of the pool, to pinned host memory, back, and into the pool.

        Each with the bytes that it must alias.
        """
        slots = self._struct(jax.ShapeDtypeStruct((EXTENT_BLOCKS,), np.int32))
        blocks = jax.eval_shape(KVPool.gather, self.state.pool, slots)
        here = NamedSharding(self.mesh, sharding.BLOCKS)
        there = here.with_memory_kind("pinned_host")
        on_device, on_host = (
            jax.ShapeDtypeStruct(blocks.shape, blocks.dtype, sharding=where)
            for where in (here, there)
        )
        yield "gather", jax.jit(KVPool.gather, out_shardings=here).trace(self.state.pool, slots), 0
        put = partial(jax.jit, lambda x: x)
        yield "to pinned_host", put(out_shardings=there).trace(on_device), 0
        yield "from pinned_host", put(out_shardings=here).trace(on_host), 0
        write = jax.jit(KVPool.scatter, donate_argnums=0)
        traced = write.trace(self.state.pool, slots, on_device)
        yield "scatter", traced, _bytes_of_one(self.state.pool.data)

    def _struct(self, leaf: Any, spec: PartitionSpec = sharding.WHOLE) -> jax.ShapeDtypeStruct:
        where = NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)


def _bytes_of_one(leaf: jax.ShapeDtypeStruct) -> int:
    """What one device holds of an array."""
    assert leaf.sharding is not None
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def compiled(name: str, traced: jax.stages.Traced, target: Target, aliased: int) -> dict[str, Any]:
    """Compile for the target's chips and hold against what the engine counts on.

    Raises:
        CheckError: the pool is copied, memory does not suffice, or a step goes to the host.
    """
    start = time.monotonic()
    with jax.set_mesh(target.mesh):
        program = traced.lower().compile()
    memory = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    touches_host = HOST.search(program.as_text()) is not None
    figures = {
        "program": name,
        "target": target.name,
        "compile_s": time.monotonic() - start,
        "alias_gib": memory.alias_size_in_bytes / GIB,
        "temp_gib": memory.temp_size_in_bytes / GIB,
        "peak_gib": peak / GIB,
        "limit_gib": target.bytes_limit / GIB,
        "collectives": _collectives(program.as_text()),
    }
    if memory.alias_size_in_bytes < aliased:
        raise CheckError(f"{figures}: the pool is not updated in place")
    if memory.temp_size_in_bytes > MAX_TEMP_BYTES:
        raise CheckError(f"{figures}: too much temporary memory")
    if peak > target.bytes_limit:
        raise CheckError(f"{figures}: does not fit the chip")
    if touches_host != name.endswith("pinned_host"):
        raise CheckError(f"{figures}: {'goes' if touches_host else 'does not go'} to the host")
    return figures


def _collectives(text: str) -> dict[str, int]:
    """How many of each kind a program has; those of a loop's body count once."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def lowered_for_gpu(name: str) -> Iterator[dict[str, Any]]:
    """The same kinds of steps, with each attention that may serve a GPU."""
    config = SHAPES[name]
    chip = Chip("gpu", 80 * GIB, 2 * config.num_params)
    for attention in ("blocks", "gpu-mosaic", "gpu-paged"):
        model = Model.build(config, DTYPE, ops=XlaOps(KERNELS[attention].attend))
        sizes = EngineSizes.resolve(EngineConfig(), config, DTYPE, chip)  # type: ignore[arg-type]
        state = jax.eval_shape(partial(DeviceState.zeros, model, sizes.pool, sizes.shapes))
        for shape in _shapes(sizes):
            start = time.monotonic()
            batch = Batch.empty(shape, sizes.shapes.pages_per_seq, sizes.shapes.num_slots)
            step = jax.jit(partial(run_step, model), donate_argnums=1)
            with jax.sharding.use_abstract_mesh(GPU_MESH):
                lowered = step.trace(model.specs, state, batch).lower(lowering_platforms=("cuda",))
            calls = len(re.findall(r"mosaic_gpu_v2|triton", lowered.as_text()))
            yield {
                "program": f"{_named(shape)}, {attention}, lowered",
                "target": f"{name} on cuda",
                "compile_s": time.monotonic() - start,
                "kernel_calls": calls,
            }


def _shapes(sizes: EngineSizes) -> list[BatchShape]:
    """The largest step that only decodes, and the largest of all."""
    shapes = sizes.shapes.shapes
    decode = max((s for s in shapes if not s.num_tiles), key=lambda s: s.num_tokens)
    return [decode, max(shapes, key=lambda s: (s.num_tokens, s.num_rows))]


def _named(shape: BatchShape) -> str:
    parts = [f"{shape.num_decode} decode"] if shape.num_decode else []
    parts += [f"{shape.num_tiles} x {shape.tile} prefill"] if shape.num_tiles else []
    return " + ".join(parts)


def main() -> int:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    results: list[dict[str, Any]] = []
    problems: list[str] = []

    def note(figures: dict[str, Any]) -> None:
        results.append(figures)
        shown = {key: value for key, value in figures.items() if key not in ("program", "target")}
        told = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in shown.items()
        )
        print(f"{figures['target']:26}{figures['program']:50}{told}", flush=True)

    for name, kind, num_chips in TARGETS:
        target = Target(name, kind, num_chips)
        pool_bytes = _bytes_of_one(target.state.pool.data)
        print(
            f"{target.name}: weights {target.weights_bytes / GIB:.2f} GiB, pool "
            f"{pool_bytes / GIB:.2f} GiB, {target.sizes.max_model_len} tokens of context"
        )
        programs = [
            (_named(shape), target.step(shape), pool_bytes) for shape in _shapes(target.sizes)
        ]
        for program, traced, aliased in [*programs, *target.moves()]:
            try:
                note(compiled(program, traced, target, aliased))
            except (CheckError, jax.errors.JaxRuntimeError) as error:
                problems.append(f"{target.name}, {program}: {error}")
    for figures in lowered_for_gpu("llama-3.1-8b"):
        note(figures)
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    write_json({"programs": results, "problems": problems}, options.json)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
