"""Compile the engine's programs for accelerators that are not here, and check the results.

    make portability
    python -m experiments.portability --json FILE

Nothing is allocated and nothing runs: libtpu and XLA's CUDA plugin compile from shapes alone, for
described devices, the programs that ``ModelRunner`` jits, with the pool size that the engine would
choose on that chip. The compilers of TPUs and of GPUs run side by side. Exits with 1 if a check
fails: each program must update the pool in place, fit
beside weights and pool, copy no weights, and not access the host.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

# Set before JAX searches for devices: this machine has no TPU, so libtpu must not query for one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # they log missing devices at length

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.device.chips import CHIPS, GIB
from experiments.measure import arguments, write_json
from kvflow_jax.cache.pool import KVPool
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.models import sharding
from kvflow_jax.models.dtypes import NO_QUANTIZATION, choose_dtype
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels import AUTO, choose_attention
from kvflow_jax.models.kernels.base import KernelTarget
from kvflow_jax.models.memory import FreeMemory, free_host_bytes
from kvflow_jax.models.model import LAYERS, Model
from kvflow_jax.models.ops import XlaOps
from kvflow_jax.models.quantised import Int8Array
from kvflow_jax.runtime.batch import Batch, BatchShape
from kvflow_jax.runtime.forward import RunnerState, StepFns
from kvflow_jax.runtime.runner import layer_groups
from kvflow_jax.runtime.sharded_forward import sharded_step_fns

# (model, chip, number of chips, attention, quantization)
TARGETS = (
    ("qwen3-0.6b", "v5e", 1, AUTO, NO_QUANTIZATION),
    ("llama-3.1-8b", "v6e", 1, AUTO, "int8"),
    ("llama-3.1-8b", "v5e", 4, AUTO, NO_QUANTIZATION),
    ("qwen3-30b-a3b", "v6e", 4, AUTO, NO_QUANTIZATION),
    ("qwen3-0.6b", "t4", 1, AUTO, NO_QUANTIZATION),
    ("llama-3.1-8b", "l4", 1, AUTO, "int8"),
    ("llama-3.1-8b", "h100", 1, AUTO, NO_QUANTIZATION),
    ("llama-3.1-8b", "h100", 1, "blocks", NO_QUANTIZATION),
    ("llama-3.1-8b", "l4", 1, "gpu-paged", NO_QUANTIZATION),
    ("llama-3.1-8b", "h100", 2, AUTO, NO_QUANTIZATION),
    ("qwen3-30b-a3b", "h100", 1, AUTO, NO_QUANTIZATION),
)
MAX_TEMP_BYTES = 1 * GIB  # any copy of a pool exceeds this
# Of weights. On v6e, steps with prompts copy one projection to a new layout.
MAX_COPIED_SHARE = 0.15
EXTENT_BLOCKS = 16
SHOWN_FIRST = ("program", "target", "dtype", "limit_gib")
# Host memory or host transfers in a compiled program.
HOST = re.compile(r"S\(5\)|\b(?:in|out)feed\b|is_host_transfer=true|MoveTo(?:Host|Device)")
# A copy to a new layout in main memory; S(1) is a TPU's on-chip memory.
COPY = re.compile(r"= \w+\[([\d,]+)\](?!\S*S\(1\))\S* (?:copy|transpose)\(")
# A matrix of integers that is written as floats.
EXPANSION = re.compile(r"= (?:bf16|f16|f32)\[([\d,]+)\]\S* fusion\(")
KERNEL_CALL = re.compile(r'custom_call_target="(tpu_custom_call|[^"]*(?:triton|mosaic)[^"]*)"')


class CheckError(Exception):
    """A program lacks a property that the engine relies on."""


@dataclass(frozen=True)
class Program:
    """A traced program of the engine.

    Attributes:
        aliased: bytes of its arguments that it must update in place.
        beside: bytes on the device that are not its arguments.
    """

    name: str
    traced: jax.stages.Traced
    aliased: int = 0
    beside: int = 0


class CompileTarget:
    """A model on chips of one kind: shapes and shardings of the arguments of its programs."""

    def __init__(self, name: str, kind: str, num_chips: int, attention: str, quantize: str) -> None:
        chip = CHIPS[kind]
        self.name = f"{name} on {num_chips} {kind}"
        for setting, default in ((attention, AUTO), (quantize, NO_QUANTIZATION)):
            self.name += "" if setting == default else f", {setting}"
        whole = PRESETS[name]
        self.dtype = choose_dtype("auto", whole, chip.platform, chip.compute_capability)
        page_size = EngineConfig().page_size
        target = KernelTarget(chip.platform, whole, self.dtype, page_size, chip.compute_capability)
        attend = choose_attention(attention, target)
        self.mesh = Mesh(np.array(chip.devices(num_chips)), (sharding.AXIS,))
        self.model = Model.build(whole, self.dtype, ops=XlaOps(attend, chip.platform, quantize))
        self.params: dict[str, Any] = {}
        for name, weight in self.model.specs.items():
            spec = sharding.weight_spec(name, len(weight.shape))
            self.params[name] = jax.tree.map(partial(self._struct, spec=spec), weight)
        if num_chips > 1:
            self.model = sharding.Shards(self.mesh).local_model(self.model)
        self.weights_bytes = _bytes_of_one(self.params)
        self.bytes_limit = int(chip.memory_gib * GIB)
        self.sizes = EngineSizes.resolve(
            EngineConfig(),
            self.model.config,
            self.dtype,
            chip.platform,
            FreeMemory(self.bytes_limit - self.weights_bytes, free_host_bytes()),
        )
        state = jax.eval_shape(
            partial(RunnerState.zeros, self.model, self.sizes.pool, self.sizes.shapes)
        )
        data = state.pool.data
        shape = (*data.shape[:2], data.shape[2] * num_chips, data.shape[3])
        data = self._struct(jax.ShapeDtypeStruct(shape, data.dtype), sharding.POOL)
        state = jax.tree.map(self._struct, state)
        self.state = replace(state, pool=replace(state.pool, data=data))
        self.pool_bytes = _bytes_of_one(data)
        self._resident = self.weights_bytes + _bytes_of_one(self.state)
        self._steps = (
            StepFns.of(self.model) if num_chips == 1 else sharded_step_fns(self.mesh, self.model)
        )
        self._is_quantised = quantize != NO_QUANTIZATION
        self._copies_by_program = chip.platform == "tpu"

    def programs(self) -> Iterator[Program]:
        """Yield the programs of the largest decode step, the largest step, and block copies."""
        with jax.set_mesh(self.mesh):
            for shape in _shapes(self.sizes):
                yield from self._step(shape)
            yield from self._copies()

    def _step(self, shape: BatchShape) -> Iterator[Program]:
        """Yield the programs of a step of one batch shape, as ``ModelRunner`` jits them."""
        batch = Batch.empty(shape, self.sizes.shapes.pages_per_seq, self.sizes.shapes.num_seq_slots)
        batch = jax.tree.map(self._struct, batch)
        steps, params, state, named = self._steps, self.params, self.state, _named(shape)
        if not self.model.unroll:
            traced = jax.jit(steps.run_step, donate_argnums=1).trace(params, state, batch)
            yield Program(named, traced, self.pool_bytes)
            return
        ends, (first, matrices) = self.model.embed_and_head_leaves(params), self._first_group()
        vectors = self.model.vector_leaves(params)
        begin = partial(steps.embed, self.sizes.pool)
        traced = jax.jit(begin).trace(ends, state.sampler.last_tokens, batch)
        yield self._beside(f"{named}: begin", traced, 0, ends)
        hidden, angles, metadata = jax.tree.map(
            self._struct, jax.eval_shape(begin, ends, state.sampler.last_tokens, batch)
        )
        rest = {"hidden": hidden, "angles": angles, "metadata": metadata, "pool": state.pool}
        run = jax.jit(steps.run_layers, donate_argnames=("hidden", "pool"))
        traced = run.trace(matrices, vectors, first, **rest)
        layers = f"{named}: {len(matrices)} layers"
        yield self._beside(layers, traced, self.pool_bytes, (matrices, vectors, state.pool))
        finish = jax.jit(steps.sample_tokens, donate_argnums=1)
        traced = finish.trace(ends, state.sampler, hidden, batch)
        yield self._beside(f"{named}: finish", traced, 0, (ends, state.sampler))

    def _first_group(self) -> tuple[Any, Any]:
        return layer_groups(self.model, self.params)[0]

    def _beside(self, name: str, traced: jax.stages.Traced, aliased: int, given: Any) -> Program:
        return Program(name, traced, aliased, self._resident - _bytes_of_one(given))

    def _copies(self) -> Iterator[Program]:
        """Yield programs that copy blocks out of the pool, to pinned host memory, and back."""
        slots = self._struct(jax.ShapeDtypeStruct((EXTENT_BLOCKS,), np.int32))
        blocks = jax.eval_shape(KVPool.gather, self.state.pool, slots)
        device_memory = NamedSharding(self.mesh, sharding.BLOCKS)
        host_memory = device_memory.with_memory_kind("pinned_host")
        on_device, on_host = (
            jax.ShapeDtypeStruct(blocks.shape, blocks.dtype, sharding=memory)
            for memory in (device_memory, host_memory)
        )
        read = jax.jit(KVPool.gather, out_shardings=device_memory)
        yield Program("gather", read.trace(self.state.pool, slots))
        if self._copies_by_program:  # a described GPU has no host memory
            put = partial(jax.jit, lambda x: x)
            yield Program("to pinned_host", put(out_shardings=host_memory).trace(on_device))
            yield Program("from pinned_host", put(out_shardings=device_memory).trace(on_host))
        write = jax.jit(KVPool.scatter, donate_argnums=0)
        traced = write.trace(self.state.pool, slots, on_device)
        yield Program("scatter", traced, self.pool_bytes)

    def copied_share(self, text: str) -> float:
        """Return the share of a layer's matrices that a program writes before their product.

        It copies or transposes them, or expands integers to floats.
        """
        sides = [
            _sides(matrix.sharding.shard_shape(matrix.shape)[-2:])
            for name, matrix in self._matrices()
            if name.startswith(LAYERS) and name.endswith("proj.weight")
        ]
        patterns = [COPY, EXPANSION] if self._is_quantised else [COPY]
        shapes = [shape for pattern in patterns for shape in pattern.findall(text)]
        copied = {_sides(map(int, shape.split(","))) for shape in shapes}
        sizes = {side: side[0] * side[1] for side in sides}
        return sum(sizes[side] for side in copied & sizes.keys()) / sum(sizes.values())

    def _matrices(self) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
        """Yield every weight by name; of a quantised one its values."""
        for name, weight in self.params.items():
            yield name, weight.qvalue if isinstance(weight, Int8Array) else weight

    def _struct(self, leaf: Any, spec: PartitionSpec = sharding.REPLICATED) -> jax.ShapeDtypeStruct:
        named_sharding = NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=named_sharding)


def _bytes_of_one(tree: Any) -> int:
    """Return the bytes of one device's shards of all arrays."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _sides(shape: Iterable[int]) -> tuple[int, ...]:
    """Return an array's sizes above 1, in any layout."""
    return tuple(sorted(size for size in shape if size > 1))


def compile_program(program: Program, target: CompileTarget) -> dict[str, Any]:
    """Compile for the target's chips, check the program, and return its figures.

    Raises:
        CheckError: the pool or weights are copied, memory is too small, or a step accesses the
            host.
    """
    start = time.monotonic()
    with jax.set_mesh(target.mesh):
        executable = program.traced.lower().compile()
    memory, text = executable.memory_analysis(), executable.as_text()
    if memory is None or text is None:
        raise CheckError(f"{program.name} on {target.name}: the compiler reports no memory or text")
    peak = (
        program.beside
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    figures = {
        "program": program.name,
        "target": target.name,
        "dtype": target.dtype,
        "compile_s": time.monotonic() - start,
        "alias_gib": memory.alias_size_in_bytes / GIB,
        "temp_gib": memory.temp_size_in_bytes / GIB,
        "peak_gib": peak / GIB,
        "limit_gib": target.bytes_limit / GIB,
        "copied_share": target.copied_share(text),
        "kernel_calls": len(KERNEL_CALL.findall(text)),
        "collectives": _collectives(text),
    }
    if memory.alias_size_in_bytes < program.aliased:
        raise CheckError(f"{figures}: the pool is not updated in place")
    if memory.temp_size_in_bytes > MAX_TEMP_BYTES:
        raise CheckError(f"{figures}: too much temporary memory")
    if peak > target.bytes_limit:
        raise CheckError(f"{figures}: does not fit the chip")
    if figures["copied_share"] > MAX_COPIED_SHARE:
        raise CheckError(f"{figures}: writes weights before their product")
    uses_host = HOST.search(text) is not None
    if uses_host != program.name.endswith("pinned_host"):
        raise CheckError(f"{figures}: {'accesses' if uses_host else 'does not access'} the host")
    return figures


def _collectives(text: str) -> dict[str, int]:
    """Count the collectives of a program by kind; those in a loop's body count once."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def _shapes(sizes: EngineSizes) -> list[BatchShape]:
    """Return the largest shape that only decodes, and the largest shape."""
    shapes = sizes.shapes.shapes
    decode = max((s for s in shapes if not s.num_tiles), key=lambda s: s.num_tokens)
    return [decode, max(shapes, key=lambda s: (s.num_tokens, s.num_rows))]


def _named(shape: BatchShape) -> str:
    parts = [f"{shape.num_decode} decode"] if shape.num_decode else []
    parts += [f"{shape.num_tiles} x {shape.tile} prefill"] if shape.num_tiles else []
    return " + ".join(parts)


def check_platform(platform: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Compile for the chips of one platform; print and return the figures, and what failed."""
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    for described in TARGETS:
        if CHIPS[described[1]].platform != platform:
            continue
        target = CompileTarget(*described)
        print(
            f"{target.name}: weights {target.weights_bytes / GIB:.2f} GiB, pool "
            f"{target.pool_bytes / GIB:.2f} GiB in {target.dtype}, "
            f"{target.sizes.max_model_len} tokens of context",
            flush=True,
        )
        for program in target.programs():
            try:
                results.append(compile_program(program, target))
                print(_line(results[-1]), flush=True)
            except (CheckError, jax.errors.JaxRuntimeError) as error:
                problems.append(f"{target.name}, {program.name}: {error}")
    return results, problems


def _line(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if key not in SHOWN_FIRST}
    text = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )
    return f"{figures['target']:35}{figures['program']:40}{text}"


def main() -> int:
    options = arguments(__doc__).parse_args()
    platforms = sorted({CHIPS[kind].platform for _, kind, *_ in TARGETS})
    with ProcessPoolExecutor(len(platforms), multiprocessing.get_context("spawn")) as processes:
        found = list(processes.map(check_platform, platforms))
    results = [figures for part, _ in found for figures in part]
    problems = [problem for _, part in found for problem in part]
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    write_json({"programs": results, "problems": problems}, options.json)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
