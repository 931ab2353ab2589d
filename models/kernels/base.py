"""Interface of an attention kernel, and the facts that its choice depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from kvflow_jax.models.attention import Attend
from kvflow_jax.models.config import ModelConfig


class Declined(Exception):  # noqa: N818 (an answer, not a failure)
    """The reason why a kernel does not support a target."""


@dataclass(frozen=True, slots=True)
class KernelTarget:
    """The device and the model that a kernel is chosen for."""

    platform: str  # JAX's name: cpu, gpu or tpu
    config: ModelConfig
    dtype: str  # of weights, queries and KV
    page_size: int  # tokens
    capability: str = ""  # compute capability of an NVIDIA GPU, such as "9.0"

    @classmethod
    def local(cls, config: ModelConfig, dtype: str, page_size: int) -> KernelTarget:
        """Return the target for this process's devices, which are all of one kind."""
        capability = getattr(jax.local_devices()[0], "compute_capability", "")
        return cls(jax.default_backend(), config, dtype, page_size, capability)


@dataclass(frozen=True)
class Kernel:
    """An implementation of attention.

    Attributes:
        check: raises ``Declined`` if the kernel does not support the target.
    """

    attend: Attend
    check: Callable[[KernelTarget], None]
