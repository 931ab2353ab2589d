"""Hardware profiles and model shapes known to the simulator by name.

Peak rates come from the vendors' data sheets. The share of the peak that a serving engine achieves
is an assumption, the same for all machines: 0.6 of dense 16-bit FLOP/s (0.3 in the attention of
prompts) and 0.8 of memory bandwidth. Launch and host times are estimates for a CUDA graph and a
Python loop. Link rates are for one direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from kvflow_jax.sim.profile import ModelShape, Profile

MATMUL_EFFICIENCY, ATTENTION_EFFICIENCY, MEMORY_EFFICIENCY = 0.6, 0.3, 0.8
# Share of device memory for weights and KV; the defaults of serving engines are 0.85 to 0.9.
MEMORY_SHARE = 0.88
MAX_DEVICES = 1024


class UnknownNameError(ValueError):
    """An unknown machine, model, arm or workload; the message lists the known names."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def _device(name: str, tflops: float, gb_per_s: float, gb: float, link_gb_per_s: float) -> Profile:
    return Profile(
        name=name,
        flops_per_s=MATMUL_EFFICIENCY * tflops * 1e12,
        attention_flops_per_s=ATTENTION_EFFICIENCY * tflops * 1e12,
        mem_bytes_per_s=MEMORY_EFFICIENCY * gb_per_s * 1e9,
        launch_s=1e-3,
        host_s=1e-3,
        link_bytes_per_s=link_gb_per_s * 1e9,
        link_latency_s=50e-6,
        memory_bytes=gb * 1e9,
    )


# The link is the 2 GB/s that version 1 of the KVFlow paper states.
A10G = _device("a10g", 70, 600, 24, 2)
# Effective rates, derived from the speedups 1.83x and 2.91x of version 1's cell 8192/32/32:
# 0.57 of an A10's 125 TFLOP/s, and 1.15 of the link's 2 GB/s.
A10G_EFFECTIVE = replace(
    A10G,
    name="a10g-effective",
    flops_per_s=0.57 * 125e12,
    attention_flops_per_s=0.285 * 125e12,
    link_bytes_per_s=1.15e9,
)
H100_PCIE = _device("h100-pcie", 756, 2000, 80, 64)  # 64 GB/s for PCIe 5, as in the paper
# The same with the effective load rate of the paper's reactive baseline, fitted to one cell of the
# camera-ready grid, 4096/32/32 (``experiments.paper``; REPORT.md describes the fit).
H100_EFFECTIVE = replace(H100_PCIE, name="h100-effective", link_bytes_per_s=3.35e9)
H200 = _device("h200", 989, 4800, 141, 64)
TPU_V5E = _device("tpu-v5e", 197, 819, 16, 8)
TPU_V6E = _device("tpu-v6e", 918, 1640, 32, 16)

MACHINES = {
    profile.name: profile
    for profile in (A10G, A10G_EFFECTIVE, H100_PCIE, H100_EFFECTIVE, H200, TPU_V5E, TPU_V6E)
}

SMOLLM2_135M = ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, itemsize=4, is_tied=True)
LLAMA_3_1_8B = ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, itemsize=2)
QWEN2_5_32B = ModelShape("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064, itemsize=2)
LLAMA_3_1_70B = ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256, itemsize=2)

SHAPES = {model.name: model for model in (SMOLLM2_135M, LLAMA_3_1_8B, QWEN2_5_32B, LLAMA_3_1_70B)}


def machine(name: str, files: Mapping[str, Path] = MappingProxyType({})) -> Profile:
    """Return a profile by name (``h100-pcie``; ``h100-pcie x4`` for four), or from a JSON file.

    Args:
        name: name of a machine or path of a JSON file.
        files: further JSON files, by name.

    Raises:
        UnknownNameError: no machine has the name, or the file holds no profile.
    """
    known = [*MACHINES, "NAME xN", *files, "FILE.json (python -m experiments.bench.fit_profile)"]
    path = files.get(name, Path(name))
    if path.suffix == ".json" and path.exists():
        try:
            return Profile.read(path)
        except (ValueError, KeyError, TypeError):
            raise UnknownNameError("machine", name, known) from None
    kind, _, count = name.partition(" x")
    is_count = count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_DEVICES
    if kind not in MACHINES or (count and not is_count):
        raise UnknownNameError("machine", name, known)
    return MACHINES[kind].with_devices(int(count)) if count else MACHINES[kind]


def shape(name: str) -> ModelShape:
    """Return a model's shape by name.

    Raises:
        UnknownNameError: no model has the name.
    """
    if name not in SHAPES:
        raise UnknownNameError("model", name, list(SHAPES))
    return SHAPES[name]


def pool_tokens(profile: Profile, model: ModelShape) -> int:
    """Return how many tokens of KV fit beside the weights; <= 0 if the weights do not fit."""
    free = MEMORY_SHARE * profile.memory_bytes - model.param_bytes
    return int(free // model.kv_bytes_per_token)
