"""The CPU kernels against XLA's own: products of few and many rows, attention over pages.

python -m experiments.kernel_bench --json FILE

Times are of ten layers of a model, whose weights no cache holds, so that they come from memory as
in a step. The two sides take turns, because a shared machine changes from second to second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure import arguments, projections, report
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.load import SHAPES
from kvflow_jax.models.ops import XLA, Ops

ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 512)
DECODE = ((1, 256), (1, 2048), (8, 256), (8, 1024), (32, 256))  # rows, context
TILES = ((1, 0), (2, 0), (2, 1536))  # tiles of 256, first position
REPEATS = 5
NUM_LAYERS = 10  # more take minutes to compile on XLA's side


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", choices=SHAPES)
    options = parser.parse_args()
    config = replace(SHAPES[options.model], num_layers=NUM_LAYERS)
    native = native_ops(config, "float32", default_cache_dir())
    if native is None:
        raise SystemExit("the kernels cannot be built here; the log says why")
    sides: dict[str, Ops] = {"xla": XLA, "native": native}
    figures: dict[str, Any] = {}
    for rows in ROWS:
        add(figures, f"linear_m{rows}", sides, lambda ops, n=rows: products(config, ops, n))
    for num, context in DECODE:
        add(
            figures,
            f"decode_attention_b{num}_{context}",
            sides,
            lambda ops, n=num, c=context: attention(config, ops, decode=[c] * n),
        )
    for num, start in TILES:
        add(
            figures,
            f"tile_attention_{num * 256}_at_{start}",
            sides,
            lambda ops, n=num, s=start: attention(
                config, ops, tiles=[s + 256 * i for i in range(n)]
            ),
        )
    report(figures, {}, options.json)


def add(
    figures: dict[str, Any],
    name: str,
    sides: dict[str, Ops],
    make: Callable[[Ops], Callable[[], Any]],
) -> None:
    """Milliseconds of each side, and how many times as fast the second is."""
    calls = {side: make(ops) for side, ops in sides.items()}
    times: dict[str, list[float]] = {side: [] for side in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(REPEATS):
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
    """The projections of all layers, one after the other, no two with the same weights."""
    rng = np.random.default_rng(0)
    shapes = projections(config)
    weights = [
        [jnp.asarray(ops.pack(rng.standard_normal(shape, np.float32) * 0.02)) for shape in shapes]
        for _ in range(config.num_layers)
    ]
    inputs = [jnp.asarray(rng.standard_normal((num_rows, k), np.float32)) for k, _ in shapes]

    @jax.jit
    def run(inputs: list[jax.Array], weights: list[list[jax.Array]]) -> list[jax.Array]:
        outs = []
        for layer in weights:
            # Each input waits for the last output, as in a model.
            outs = [
                ops.linear(x + (outs[-1][:, :1] if outs else 0), w, n)
                for x, w, (_, n) in zip(inputs, layer, shapes, strict=True)
            ]
        return outs

    return lambda: run(inputs, weights)


def attention(
    config: ModelConfig, ops: Ops, decode: list[int] | None = None, tiles: list[int] | None = None
) -> Callable[[], Any]:
    """All layers' attention: rows of one query with these contexts, or tiles from these starts."""
    decode, tiles, width, page = decode or [], tiles or [], 256, 16
    rng = np.random.default_rng(0)
    longest = max([*decode, *(start + width for start in tiles)])
    per_row = -(-longest // page)
    num_sequences = max(1, len(decode))  # all tiles are of one sequence
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
    rows = AttentionMetadata(
        page_table=jnp.asarray(table if decode else np.repeat(table, num_rows, 0)),
        query_start=jnp.asarray([n - 1 for n in decode] + tiles, jnp.int32),
        query_len=jnp.asarray([1] * len(decode) + [width] * len(tiles), jnp.int32),
        write_kv_slots=jnp.full(
            num_tokens, spec.num_kv_slots, jnp.int32
        ),  # the pool stays as it is
        num_decode=len(decode),
        tile=width,
    )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    q = jnp.asarray(rng.standard_normal((num_tokens, heads, config.head_dim), np.float32))
    kv = jnp.zeros((num_tokens, kv_heads, config.head_dim), jnp.float32)

    def run(q: jax.Array, rows: AttentionMetadata, pool: KVPool) -> tuple[jax.Array, KVPool]:
        # Carried through a loop, the pool is written in place, as in a step.
        def attend(layer: jax.Array, carry: tuple[jax.Array, KVPool]) -> tuple[jax.Array, KVPool]:
            return ops.attend(layer, carry[0], kv, kv, rows, carry[1], config.attention_kind)

        return jax.lax.fori_loop(0, config.num_layers, attend, (q, pool))

    jitted = jax.jit(run, donate_argnums=2)
    state = [pool]

    def call() -> jax.Array:
        out, state[0] = jitted(q, rows, state[0])
        return out

    return call


if __name__ == "__main__":
    main()
