"""Descriptions of accelerators, sufficient for their compilers, without any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

GIB = 1 << 30
SERVED_SHARE = 0.9  # of a GPU's memory, see kvflow_jax/runtime/gpu_memory.py

# XLA's description of a GPU. Values are of NVIDIA's data sheets and CUDA's programming guide.
GPU_CONFIG = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  core_count: {cores}
  fpus_per_core: {fpus}
  clock_rate_ghz: {ghz}
  memory_bandwidth: {bytes_per_s}
  device_memory_size: {memory_bytes}
  l2_cache_size: {l2_bytes}
  shared_memory_per_core: {shared_bytes}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block_shared_bytes}
  threads_per_core_limit: {threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        platform: ``tpu`` or ``gpu``.
        memory_gib: memory limit that JAX reports.
        compute_capability: ``major.minor`` of a GPU.
        gpu: further fields of GPU_CONFIG.
    """

    platform: str
    name: str
    memory_gib: float
    compute_capability: str = ""
    gpu: tuple[tuple[str, Any], ...] = ()

    def devices(self, num: int) -> Sequence[jax.Device]:
        """Return ``num`` described devices to compile for.

        Raises:
            RuntimeError: the compiler is not installed, see ``make portability``.
        """
        if self.platform == "tpu":
            described = topologies.get_topology_desc(f"{self.name}:2x2", platform="tpu")
            return described.devices[:num]
        major, minor = self.compute_capability.split(".")
        features = "feature_extension: ACCELERATED_FEATURES" if int(major) >= 9 else ""
        config = GPU_CONFIG.format(
            major=major,
            minor=minor,
            features=features,
            name=self.name,
            memory_bytes=int(self.memory_gib / SERVED_SHARE * GIB),
            **dict(self.gpu),
        )
        described = topologies.get_topology_desc(
            platform="cuda", target_config=config, topology=f"1x1x{num}"
        )
        return described.devices


def _gpu(name: str, memory_gib: float, compute_capability: str, **facts: Any) -> Chip:
    served = memory_gib * SERVED_SHARE
    return Chip("gpu", name, served, compute_capability, tuple(facts.items()))


CHIPS = {
    "v5e": Chip("tpu", "v5e", 15.75),
    "v6e": Chip("tpu", "v6e", 31.25),
    "t4": _gpu(
        "Tesla T4",
        14.56,
        "7.5",
        cores=40,
        fpus=64,
        ghz=1.59,
        bytes_per_s=320_000_000_000,
        l2_bytes=4 << 20,
        shared_bytes=64 << 10,
        block_shared_bytes=64 << 10,
        threads=1024,
    ),
    "l4": _gpu(
        "NVIDIA L4",
        22.03,
        "8.9",
        cores=58,
        fpus=128,
        ghz=2.04,
        bytes_per_s=300_000_000_000,
        l2_bytes=48 << 20,
        shared_bytes=100 << 10,
        block_shared_bytes=99 << 10,
        threads=1536,
    ),
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3",
        79.1,
        "9.0",
        cores=132,
        fpus=128,
        ghz=1.98,
        bytes_per_s=3_352_000_000_000,
        l2_bytes=50 << 20,
        shared_bytes=228 << 10,
        block_shared_bytes=227 << 10,
        threads=2048,
    ),
}
