"""Benchmark the CPU kernels against XLA's: matrix products, and attention over pages.

    python -m experiments.kernel_bench --json FILE
    python -m experiments.kernel_bench --quick     # few sizes, two layers: a check of the command

Times are of ten layers of a model, whose weights exceed the processor's caches, so that they come
from memory as in a step. Runs of the two sides alternate, because a shared machine's load drifts.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure import arguments, projections, report
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.ops import XLA, Ops

ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 512)
DECODE = ((1, 256), (1, 2048), (8, 256), (8, 1024), (32, 256))  # rows, context
TILES = ((1, 0), (2, 0), (2, 1536))  # tiles of 256 queries, first position
REPEATS = 5
NUM_LAYERS = 10  # XLA takes minutes to compile more


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--model", default="smollm2-135m", choices=PRESETS, help="shape; default: smollm2-135m"
    )
    parser.add_argument("--quick", action="store_true", help="few sizes, two layers, one repeat")
    options = parser.parse_args()
    num_sizes, num_layers, repeats = (1, 2, 1) if options.quick else (None, NUM_LAYERS, REPEATS)
    config = replace(PRESETS[options.model], num_layers=num_layers)
    native = native_ops(config, "float32", default_cache_dir())
    if native is None:
        print("kernel_bench: the kernels cannot be built here; see the log", file=sys.stderr)
        return 1
    sides: dict[str, Ops] = {"xla": XLA, "native": native}
    figures: dict[str, Any] = {}
    for rows in ROWS[:num_sizes]:
        make = partial(products, config, num_rows=rows)
        add(figures, f"linear_m{rows}", sides, make, repeats)
    for num, context in DECODE[:num_sizes]:
        make = partial(attention, config, decode=[context] * num)
        add(figures, f"decode_attention_b{num}_{context}", sides, make, repeats)
    for num, start in TILES[:num_sizes]:
        make = partial(attention, config, tiles=[start + 256 * i for i in range(num)])
        add(figures, f"tile_attention_{num * 256}_at_{start}", sides, make, repeats)
    report(figures, {}, options.json)
    return 0


def add(
    figures: dict[str, Any],
    name: str,
    sides: dict[str, Ops],
    make: Callable[[Ops], Callable[[], Any]],
    repeats: int,
) -> None:
    """Add the median time of each side, milliseconds, and the speedup of the second side."""
    calls = {side: make(ops) for side, ops in sides.items()}
    times: dict[str, list[float]] = {side: [] for side in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for side, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[side].append(time.perf_counter() - start)
    xla, native = (statistics.median(times[side]) for side in sides)
    figures[f"{name}_ms"] = {"xla": round(xla * 1e3, 2), "native": round(native * 1e3, 2)}
    print(name, figures[f"{name}_ms"], flush=True)
    figures[f"{name}_speedup"] = statistics.median(
        a / b for a, b in zip(times["xla"], times["native"], strict=True)
    )


def products(config: ModelConfig, ops: Ops, num_rows: int) -> Callable[[], Any]:
    """Return a call that runs the projections of all layers in sequence, each with own weights."""
    rng = np.random.default_rng(0)
    shapes = projections(config)
    weights = [
        [jnp.asarray(ops.pack(rng.standard_normal(shape, np.float32) * 0.02)) for shape in shapes]
        for _ in range(config.num_layers)
    ]
    inputs = [jnp.asarray(rng.standard_normal((num_rows, k), np.float32)) for k, _ in shapes]

    @jax.jit
    def run(inputs: list[jax.Array], weights: list[list[jax.Array]]) -> list[jax.Array]:
        outs: list[jax.Array] = []
        for layer in weights:
            # Each input depends on the last output, as in a model.
            outs = [
                ops.linear(x + (outs[-1][:, :1] if outs else 0), w, n)
                for x, w, (_, n) in zip(inputs, layer, shapes, strict=True)
            ]
        return outs

    return lambda: run(inputs, weights)


def attention(
    config: ModelConfig, ops: Ops, decode: list[int] | None = None, tiles: list[int] | None = None
) -> Callable[[], Any]:
    """Return a call that runs the attention of all layers.

    Args:
        decode: context tokens of each row of one query.
        tiles: first position of each tile of 256 queries.
    """
    decode, tiles, width, page = decode or [], tiles or [], 256, 16
    rng = np.random.default_rng(0)
    longest = max([*decode, *(start + width for start in tiles)])
    per_row = -(-longest // page)
    num_sequences = max(1, len(decode))  # all tiles belong to one sequence
    spec = PoolSpec(
        config.num_layers,
        1 + num_sequences * per_row,
        page,
        config.num_kv_heads,
        config.head_dim,
    )
    pool = KVPool(jnp.asarray(rng.standard_normal(KVPool.zeros(spec).data.shape, np.float32)), spec)
    table = 1 + rng.permutation(spec.num_pages - 1).reshape(num_sequences, -1).astype(np.int32)
    num_rows, num_tokens = len(decode) + len(tiles), len(decode) + width * len(tiles)
    metadata = AttentionMetadata(
        page_table=jnp.asarray(table if decode else np.repeat(table, num_rows, 0)),
        query_start=jnp.asarray([n - 1 for n in decode] + tiles, jnp.int32),
        query_len=jnp.asarray([1] * len(decode) + [width] * len(tiles), jnp.int32),
        write_kv_slots=jnp.full(
            num_tokens, spec.num_kv_slots, jnp.int32
        ),  # past the pool: nothing is written
        num_decode=len(decode),
        tile=width,
    )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    shape = num_tokens, heads + 2 * kv_heads, config.head_dim
    qkv = jnp.asarray(rng.standard_normal(shape, np.float32))
    no_angle = num_tokens, 1, config.head_dim // 2
    angles = jnp.ones(no_angle, jnp.float32), jnp.zeros(no_angle, jnp.float32)

    def run(qkv: jax.Array, metadata: AttentionMetadata, pool: KVPool) -> tuple[jax.Array, KVPool]:
        # A pool that is carried through a loop is updated in place, as in a step.
        def attend(layer: jax.Array, carry: tuple[jax.Array, KVPool]) -> tuple[jax.Array, KVPool]:
            qkv, pool = carry
            out, pool = ops.rotate_and_attend(
                layer, qkv, angles, metadata, pool, config.attention_config
            )
            return qkv.at[:, :heads].set(out), pool

        end: tuple[jax.Array, KVPool] = jax.lax.fori_loop(0, config.num_layers, attend, (qkv, pool))
        return end

    jitted = jax.jit(run, donate_argnums=2)
    state = [pool]

    def call() -> jax.Array:
        out: jax.Array
        out, state[0] = jitted(qkv, metadata, state[0])
        return out

    return call


if __name__ == "__main__":
    sys.exit(main())
