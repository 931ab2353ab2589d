"""The dtype of weights, activations and KV."""

from __future__ import annotations

from collections.abc import Callable

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import FAMILIES

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
NO_QUANTIZATION = "none"  # weights have the dtype
INT8, INT4 = "int8", "int4"


def choose_dtype(
    name: str,
    config: ModelConfig,
    platform: str,
    capability: str = "",
    *,
    has_fast_bfloat16: Callable[[], bool] = lambda: False,
) -> str:
    """Return the dtype of that name, or for ``auto`` the best dtype of this model on a device.

    As in vLLM, a checkpoint in float32 is cast to 16 bits where the device multiplies those faster.
    CPU: bfloat16 if the CPU multiplies it faster, else float32. TPU: bfloat16.
    GPU: float16 if the checkpoint has it, else bfloat16. GPUs before Ampere (T4, V100) have no
    bfloat16 and get float16. A model that overflows float16 gets float32 instead of float16.

    Args:
        platform: JAX's name of it: cpu, gpu or tpu.
        capability: compute capability of an NVIDIA GPU, such as "9.0".
        has_fast_bfloat16: returns whether this CPU computes the model faster in bfloat16 than in
            float32. Called for ``auto`` on a CPU only.
    """
    if name != AUTO:
        return name
    if platform == "cpu":
        return "bfloat16" if has_fast_bfloat16() else "float32"
    if platform == "gpu" and (config.dtype == "float16" or not _has_bfloat16(capability)):
        return "float32" if FAMILIES[config.family].overflows_float16 else "float16"
    return "bfloat16"


def _has_bfloat16(capability: str) -> bool:
    """True if the GPU multiplies bfloat16: NVIDIA's from compute capability 8.0, and all others."""
    try:
        return float(capability) >= 8.0
    # AMD's capability is a name like gfx90a; some devices have none.
    except ValueError:
        return True
