"""The dtype of weights, activations and KV."""

from __future__ import annotations

import jax

from kvflow_jax.models.config import ModelConfig

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"

# Families whose activations do not fit float16's range, largest 65504.
TOO_LARGE_FOR_FLOAT16 = ("gemma3",)


def choose_dtype(name: str, config: ModelConfig, device: jax.Device) -> str:
    """The dtype of that name, or for ``auto`` what the device computes this model best in.

    On CPU float32: it computes the 16-bit ones as float32, and slower. On TPU bfloat16. On GPU that
    of the checkpoint, bfloat16 where that is float32; GPUs before Ampere (T4, V100) have none and
    take float16, or float32 for models that go past it.
    """
    if name != AUTO:
        return name
    if device.platform == "cpu":
        return "float32"
    if device.platform == "gpu" and (config.dtype == "float16" or not _has_bfloat16(device)):
        return "float32" if config.family in TOO_LARGE_FOR_FLOAT16 else "float16"
    return "bfloat16"


def _has_bfloat16(device: jax.Device) -> bool:
    """Whether a GPU multiplies it: NVIDIA's from compute capability 8.0 on, and all others."""
    try:
        return float(device.compute_capability) >= 8.0
    except (AttributeError, ValueError):  # AMD's is called gfx90a, or not at all
        return True
