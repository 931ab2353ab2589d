"""What a kernel for attention is, and what its choice depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from kvflow_jax.models.attention import Attend
from kvflow_jax.models.config import ModelConfig


class Declined(Exception):  # noqa: N818 (an answer, not a failure)
    """Why a kernel does not serve a model here: for the log, or for whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is known when a kernel is chosen."""

    platform: str  # as JAX names it: cpu, gpu, tpu
    config: ModelConfig
    dtype: str  # of weights, queries and KV
    page_size: int
    capability: str = ""  # of an NVIDIA GPU, as in "9.0"

    @classmethod
    def here(cls, config: ModelConfig, dtype: str, page_size: int) -> Case:
        """On the devices of this process, all of one kind."""
        capability = getattr(jax.local_devices()[0], "compute_capability", "")
        return cls(jax.default_backend(), config, dtype, page_size, capability)


@dataclass(frozen=True)
class Kernel:
    """An implementation.

    Attributes:
        check: raises ``Declined`` where it does not serve.
    """

    attend: Attend
    check: Callable[[Case], None]
