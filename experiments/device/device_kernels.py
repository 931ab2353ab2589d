"""Check attention on a device: every supported kernel against the reference, and its speed.

Part of ``experiments.device_check``. A kernel may become a platform's default once it has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure import seconds
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import Attend, AttentionMetadata
from kvflow_jax.models.config import AttentionConfig, ModelConfig
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels import KERNELS
from kvflow_jax.models.kernels.base import Declined, Kernel, KernelTarget

PAGE, TILE, NUM_LAYERS = 16, 128, 4
# Largest error of outputs, which are about 1 for short contexts. By default, accelerators multiply
# float32 at lower precision.
TOLERANCE = {"bfloat16": 4e-2, "float16": 1e-2, "float32": 2e-2}
# dtype, head_dim and number of heads, over 4 KV heads, of models other than the one that is timed.
SHAPES = (
    ("bfloat16", 64, 12),
    ("bfloat16", 128, 4),
    ("bfloat16", 256, 8),
    ("float16", 128, 32),
    ("float32", 64, 12),
    ("float32", 128, 16),
)


@dataclass(frozen=True)
class Ragged:
    """A batch of decode rows, by context length, and of tiles, by (first position, length)."""

    decode: tuple[int, ...] = ()
    tiles: tuple[tuple[int, int], ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest context."""
        return max([*self.decode, *(start + length for start, length in self.tiles)])

    def kv_bytes(self, config: ModelConfig, itemsize: int) -> int:
        """Return the bytes that decoding reads in one layer."""
        return sum(self.decode) * 2 * config.num_kv_heads * config.head_dim * itemsize

    def flops(self, config: ModelConfig) -> int:
        """Return the FLOPs of the tiles' attention in one layer."""
        pairs = sum(n * start + n * (n + 1) // 2 for start, n in self.tiles)
        return 4 * config.num_heads * config.head_dim * pairs


def workload(longest: int) -> dict[str, Ragged]:
    """Return the batches: ``mixed`` is compared with the reference, all others are timed.

    Args:
        longest: tokens of the longest context, at least 218.
    """
    return {
        "mixed": Ragged((1, longest, 0, longest // 3), ((0, 128), (longest // 2, 37), (0, 0))),
        "decode_b1": Ragged((longest,)),
        "decode_b32": Ragged(tuple(longest - 7 * i for i in range(32))),
        "prefill_cold": Ragged(tiles=tuple((TILE * i, TILE) for i in range(16))),
        "prefill_cached": Ragged(tiles=tuple((longest + TILE * i, TILE) for i in range(4))),
    }


def check_shapes(name: str, kernel: Kernel, longest: int) -> tuple[dict[str, Any], list[str]]:
    """Return a kernel's error for each dtype and head_dim that it supports, and messages."""
    figures: dict[str, Any] = {}
    problems = []
    for dtype, head_dim, num_heads in SHAPES:
        config = replace(
            PRESETS["llama-3.1-8b"], num_heads=num_heads, num_kv_heads=4, head_dim=head_dim
        )
        key = f"attention.{name}.{dtype}.{head_dim}x{num_heads}.error"
        try:
            kernel.check(KernelTarget.local(config, dtype, PAGE))
            error = largest_error(kernel.attend, config, dtype, workload(longest)["mixed"])
        except Declined:
            continue
        except Exception as failure:  # compilers raise any type; other shapes are still checked
            problems.append(f"{key}: {type(failure).__name__}: {str(failure)[:500]}")
            continue
        figures[key] = error
        if not error <= TOLERANCE[dtype]:
            problems.append(f"{key}: {error:.3g}")
    return figures, problems


def check_kernel(
    name: str,
    kernel: Kernel,
    config: ModelConfig,
    dtype: str,
    longest: int,
    ceiling: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Return figures of a kernel, and a message if it is wrong.

    Args:
        longest: tokens of the longest context.
        ceiling: ``read_gb_s`` and ``matmul_tflops`` of the device.
    """
    try:
        kernel.check(KernelTarget.local(config, dtype, PAGE))
    except Declined as reason:
        return {f"attention.{name}": f"declined: {reason}"}, []
    error = largest_error(kernel.attend, config, dtype, workload(longest)["mixed"])
    problems = []
    if not error <= TOLERANCE[dtype]:  # also true for NaN
        problems.append(f"attention {name} differs from the reference by {error:.3g}")
    timed = speed(kernel.attend, config, dtype, longest, ceiling)
    figures = {f"attention.{name}.{key}": value for key, value in timed.items()}
    return {f"attention.{name}.error": error} | figures, problems


def largest_error(attend: Attend, config: ModelConfig, dtype: str, ragged: Ragged) -> float:
    """Return the largest error over a full and a windowed layer; NaN if an output has NaN."""
    errors = []
    for window in (0, ragged.longest // 4):
        attention_config = AttentionConfig(config.head_dim**-0.5, (0, window, 0, 0))
        outs = []
        for implementation in (KERNELS["reference"].attend, attend):
            inputs = make_inputs(config, dtype, ragged)
            run = jax.jit(partial(implementation, config=attention_config), donate_argnames="pool")
            out, _ = run(np.int32(1), *inputs[:3], metadata=inputs[3], pool=inputs[4])
            outs.append(np.asarray(out, np.float32))
        errors.append(np.abs(outs[0] - outs[1]).max())
    return float(np.max(errors))


def speed(
    attend: Attend, config: ModelConfig, dtype: str, longest: int, ceiling: dict[str, Any]
) -> dict[str, float]:
    """Return the time of one layer, ms, and its share of the device's bandwidth or products."""
    figures = {}
    for name, ragged in workload(longest).items():
        if name == "mixed":
            continue
        run = layers(attend, config, dtype, ragged)
        run()
        layer_s = seconds(run, 10) / NUM_LAYERS
        figures[f"{name}_ms"] = layer_s * 1e3
        if ragged.decode:
            read = ragged.kv_bytes(config, jnp.dtype(dtype).itemsize) / layer_s / 1e9
            figures[f"{name}_vs_bandwidth"] = read / ceiling["read_gb_s"]
        else:
            done = ragged.flops(config) / layer_s / 1e12
            figures[f"{name}_vs_matmul"] = done / ceiling["matmul_tflops"]
    return figures


def layers(
    attend: Attend, config: ModelConfig, dtype: str, ragged: Ragged
) -> Callable[[], jax.Array]:
    """Return a call that runs NUM_LAYERS layers over one donated pool, as in a step."""
    q, k, v, metadata, pool = make_inputs(config, dtype, ragged)
    metadata = replace(
        metadata, write_kv_slots=jnp.full_like(metadata.write_kv_slots, pool.spec.num_kv_slots)
    )
    attention_config = AttentionConfig(config.head_dim**-0.5, (0,) * NUM_LAYERS)

    def run(q: jax.Array, pool: KVPool) -> tuple[jax.Array, KVPool]:
        def layer(i: jax.Array, carry: tuple[jax.Array, KVPool]) -> tuple[jax.Array, KVPool]:
            return attend(i, carry[0], k, v, metadata, carry[1], attention_config)

        end: tuple[jax.Array, KVPool] = jax.lax.fori_loop(0, NUM_LAYERS, layer, (q, pool))
        return end

    jitted = jax.jit(run, donate_argnums=1)
    state = [pool]

    def call() -> jax.Array:
        out: jax.Array
        out, state[0] = jitted(q, state[0])
        return out

    return call


def make_inputs(
    config: ModelConfig, dtype: str, ragged: Ragged
) -> tuple[jax.Array, jax.Array, jax.Array, AttentionMetadata, KVPool]:
    """Return queries, new keys and values, metadata, and a pool of random pages in random order."""
    rng = np.random.default_rng(0)
    starts = [max(0, n - 1) for n in ragged.decode] + [start for start, _ in ragged.tiles]
    lens = [min(1, n) for n in ragged.decode] + [length for _, length in ragged.tiles]
    per_row, num_rows = -(-ragged.longest // PAGE), len(starts)
    # Consecutive tiles belong to one prompt, and read its pages.
    sequence = np.cumsum(
        [
            row <= len(ragged.decode) or starts[row] != starts[row - 1] + lens[row - 1]
            for row in range(num_rows)
        ]
    )
    num_pages = 1 + int(sequence[-1]) * per_row
    spec = PoolSpec(NUM_LAYERS, num_pages, PAGE, config.num_kv_heads, config.head_dim, dtype)
    pages = 1 + rng.permutation(num_pages - 1).reshape(-1, per_row).astype(np.int32)
    table = pages[sequence - 1]
    widths = [1] * len(ragged.decode) + [TILE] * len(ragged.tiles)
    slots = np.full(sum(widths), spec.num_kv_slots, np.int32)
    first = 0
    for row, width in enumerate(widths):
        position = starts[row] + np.arange(lens[row])
        slots[first : first + lens[row]] = table[row, position // PAGE] * PAGE + position % PAGE
        first += width
    metadata = AttentionMetadata(
        page_table=jnp.asarray(table),
        query_start=jnp.asarray(starts, jnp.int32),
        query_len=jnp.asarray(lens, jnp.int32),
        write_kv_slots=jnp.asarray(slots),
        num_decode=len(ragged.decode),
        tile=TILE,
    )
    keys = jax.random.split(jax.random.key(0), 4)

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.dtype(dtype))

    num_tokens, head_dim = len(slots), config.head_dim
    data = normal(keys[3], NUM_LAYERS * num_pages, PAGE, 2 * config.num_kv_heads, head_dim)
    return (
        normal(keys[0], num_tokens, config.num_heads, head_dim),
        normal(keys[1], num_tokens, config.num_kv_heads, head_dim),
        normal(keys[2], num_tokens, config.num_kv_heads, head_dim),
        metadata,
        KVPool(data, spec),
    )
