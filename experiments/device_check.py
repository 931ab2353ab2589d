"""A first look at a device: its ceilings, its host link, what overlaps, and what a model gets.

python -m experiments.device_check --json FILE
python -m experiments.device_check --model llama-3.2-1b --random-weights --dtype bfloat16
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.measure import arguments, machine, prefill_flops, report, seconds
from kvflow_jax import LLM, SamplingParams
from kvflow_jax.runner import ModelRunner

MIB = 1 << 20


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--dtype", default=None, help="of the weights; bfloat16, on CPU float32")
    parser.add_argument("--no-model", action="store_true", help="look at the device alone")
    options = parser.parse_args()
    start = time.monotonic()
    device = jax.devices()[0]
    dtype = options.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    figures: dict[str, Any] = {"device": machine(), "dtype": dtype, **memory(device)}
    figures |= ceilings(device, dtype)
    figures |= host_link(device)
    figures |= overlap(device, dtype)
    if not options.no_model:
        figures |= model_rates(options.model, options.random_weights, dtype, figures)
    figures["took_s"] = time.monotonic() - start
    report(figures, {"pool_in_place": "true"}, options.json)


def memory(device: jax.Device) -> dict[str, Any]:
    stats = device.memory_stats() or {}
    return {
        "memory_kinds": sorted(kind.kind for kind in device.addressable_memories()),
        "memory_bytes_limit": stats.get("bytes_limit"),
    }


def ceilings(device: jax.Device, dtype: str) -> dict[str, Any]:
    """Matrix products and memory bandwidth, as JAX reaches them."""
    size, copy_mib = (2048, 128) if device.platform == "cpu" else (8192, 2048)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(a, a))
    matmul_s = min(seconds(lambda: product(a, a), 1) for _ in range(8))
    x = jnp.ones(copy_mib * MIB // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    add = jax.jit(lambda v: v + 1)
    jax.block_until_ready((total(x), add(x)))
    read_s = min(seconds(lambda: total(x), 1) for _ in range(8))
    copy_s = min(seconds(lambda: add(x), 1) for _ in range(8))
    return {
        "matmul_tflops": 2 * size**3 / matmul_s / 1e12,
        "read_gb_s": x.nbytes / read_s / 1e9,
        "read_and_write_gb_s": 2 * x.nbytes / copy_s / 1e9,
    }


def host_link(device: jax.Device) -> dict[str, Any]:
    """GB/s of device_put each way between device memory and each kind of host memory."""
    figures: dict[str, Any] = {}
    here = SingleDeviceSharding(device)
    for size_mib in (1, 32, 256):
        on_device = jnp.ones(size_mib * MIB // 4, jnp.float32)
        for kind in ("pinned_host", "unpinned_host"):
            if kind not in {k.kind for k in device.addressable_memories()}:
                continue
            there = SingleDeviceSharding(device, memory_kind=kind)
            on_host = jax.block_until_ready(jax.device_put(on_device, there))
            for name, array, target in (
                (f"{kind}_to_device", on_host, here),
                (f"device_to_{kind}", on_device, there),
            ):
                put = _put(array, target)
                jax.block_until_ready(put())
                best = min(seconds(put, 1) for _ in range(5))
                figures[f"{name}_{size_mib}mib_gb_s"] = on_device.nbytes / best / 1e9
    return figures


def _put(array: jax.Array, target: SingleDeviceSharding) -> Callable[[], jax.Array]:
    return lambda: jax.device_put(array, target)


def overlap(device: jax.Device, dtype: str) -> dict[str, Any]:
    """Whether a copy from pinned host memory runs beside a step, issued before or after it.

    1 means the shorter of the two is hidden entirely, 0 that they run one after the other.
    """
    if "pinned_host" not in {kind.kind for kind in device.addressable_memories()}:
        return {"overlap_copy_first": None, "overlap_step_first": None}
    size = 1024 if device.platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype)) / size**0.5

    @jax.jit
    def busy(x: jax.Array, rounds: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, rounds, lambda _, y: jnp.dot(y, x), x)

    num_bytes = (64 if device.platform == "cpu" else 1024) * MIB
    there = SingleDeviceSharding(device, memory_kind="pinned_host")
    on_host = jax.block_until_ready(jax.device_put(jnp.ones(num_bytes // 4, jnp.float32), there))
    copy = _put(on_host, SingleDeviceSharding(device))
    jax.block_until_ready((busy(a, 4), copy()))
    copy_s = seconds(copy)
    rounds = max(1, round(copy_s / (seconds(lambda: busy(a, 8)) / 8)))
    step_s = seconds(lambda: busy(a, rounds))
    first = seconds(lambda: (copy(), busy(a, rounds)))
    after = seconds(lambda: (busy(a, rounds), copy()))
    shorter = min(copy_s, step_s)
    return {
        "overlap_copy_ms": copy_s * 1e3,
        "overlap_step_ms": step_s * 1e3,
        "overlap_copy_first": (copy_s + step_s - first) / shorter,
        "overlap_step_first": (copy_s + step_s - after) / shorter,
    }


def in_place(runner: ModelRunner) -> bool:
    """Whether the largest step updates the donated pool where it is: no second copy of it."""
    analysis = runner.memory_analysis(runner.shapes.shapes[-1])
    pool_bytes = runner.pool_spec.nbytes
    aliased = analysis.alias_size_in_bytes >= pool_bytes
    return bool(aliased and analysis.temp_size_in_bytes < pool_bytes)


def model_rates(
    name: str, random_weights: bool, dtype: str, ceiling: dict[str, Any]
) -> dict[str, Any]:
    """Prefill and decode of a model, in the engine, as fractions of the ceilings above."""
    on_cpu = ceiling["device"]["platform"] == "cpu"
    sizes = {"max_num_seqs": 8, "max_model_len": 4096, "pool_gib": 1 if on_cpu else 8}
    start = time.monotonic()
    with LLM(name, random_weights=random_weights, dtype=dtype, progress=False, **sizes) as llm:
        ready_s = time.monotonic() - start
        rng = np.random.default_rng(0)
        greedy = {"temperature": 0.0, "ignore_eos": True}

        def generate(num_prompts: int, length: int, num_tokens: int) -> Any:
            prompts = rng.integers(0, llm.config.vocab_size, (num_prompts, length)).tolist()
            params = SamplingParams(max_tokens=num_tokens, **greedy)
            return llm.generate(prompts, params, progress=False)

        generate(1, 2048, 1)
        stats = [generate(1, 2048, 1)[0].stats for _ in range(3)]
        prefill_s = min(s.first_token_s - s.arrival_s for s in stats)
        figures = {
            "model": name,
            "random_weights": random_weights,
            "ready_s": ready_s,
            "pool_in_place": in_place(llm.runner),
            "prefill_tokens_per_s": 2048 / prefill_s,
            "prefill_vs_matmul": prefill_flops(llm.config, 2048)
            / prefill_s
            / (ceiling["matmul_tflops"] * 1e12),
        }
        for batch in (1, 8):
            done = [c.stats for c in generate(batch, 256, 33)]
            last_start = max(s.first_token_s for s in done)
            decode_s = (max(s.finished_s for s in done) - last_start) / 32
            figures[f"decode_b{batch}_256_ms"] = decode_s * 1e3
            if batch == 1:
                bound_s = llm.weights_bytes / (ceiling["read_gb_s"] * 1e9)
                figures["decode_b1_vs_bandwidth"] = bound_s / decode_s
    return figures


if __name__ == "__main__":
    main()
