"""``ModelBuilder``: from a model's config to its definition on this machine's devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.dtypes import INT4, NO_QUANTIZATION, choose_dtype
from kvflow_jax.models.kernels import AUTO, choose_attention
from kvflow_jax.models.kernels.base import KernelTarget
from kvflow_jax.models.kernels.cpu.ops import has_fast_bfloat16, native_ops
from kvflow_jax.models.memory import Device, free_device_bytes, free_host_bytes
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import Ops, XlaOps
from kvflow_jax.models.sharding import Shards, shard_of

_CHOSEN = " (auto: the fastest on this device; --dtype float32 for full precision)"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelBuilder:
    """How models are computed on this machine. ``load_model`` describes the attributes."""

    dtype: str
    quantize: str
    cache_dir: Path
    ops: Ops | None
    attention: str
    page_size: int
    max_model_len: int | None
    shards: Shards | None
    check_model: Callable[[Model], None]

    def build(self, config: ModelConfig, stored: str = NO_QUANTIZATION) -> Model:
        """Return the definition of a model, whose weights are then read or initialised.

        Args:
            stored: how the model's files quantise matrices, which ``quantize`` "auto" keeps.

        Raises:
            CapacityError: the weights need more memory than is free; says how much more.
            ConfigError: the attention kernel does not support this model on this platform, weights
                cannot be quantised so, or the devices cannot share the model.
            ModelLoadError: weights cannot have this dtype.
        """
        if self.quantize not in (AUTO, NO_QUANTIZATION) and config.moe is not None:
            raise ConfigError(
                f"--quantize {self.quantize} does not support mixtures of experts "
                f"({config.family}); leave it out for this model"
            )
        config, device = _for_len(config, self.max_model_len), jax.local_devices()[0]
        capability = getattr(device, "compute_capability", "")
        dtype = choose_dtype(
            self.dtype,
            config,
            device.platform,
            capability,
            has_fast_bfloat16=lambda: self._has_fast_bfloat16(config),
        )
        quantize = self._quantize(config, dtype, device.platform, stored)
        model = Model.build(config, dtype, ops=self._ops(config, dtype, device.platform, quantize))
        chosen = "" if dtype in ("float32", self.dtype) else _CHOSEN
        if quantize == NO_QUANTIZATION:
            log.info("dtype of weights and KV cache: %s%s", dtype, chosen)
        else:
            log.info("weights quantised to %s, KV cache in %s%s", quantize, dtype, chosen)
        num_devices = 1 if self.shards is None else self.shards.num_shards
        _check_memory(model, device, f"each of {num_devices} {device.device_kind}", num_devices)
        self.check_model(model)
        return model

    def _has_fast_bfloat16(self, config: ModelConfig) -> bool:
        """True if native kernels will compute the model, faster in bfloat16 than in float32."""
        return self._takes_native and has_fast_bfloat16(config, self.cache_dir)

    @property
    def _takes_native(self) -> bool:
        return self.ops is None and self.shards is None and self.attention == AUTO

    def _quantize(self, config: ModelConfig, dtype: str, platform: str, stored: str) -> str:
        """Return how weights are quantised: "auto" as in the files, where native kernels can."""
        if self.quantize != AUTO:
            return self.quantize
        is_kept = (
            stored != NO_QUANTIZATION
            and config.moe is None
            and platform == "cpu"
            and self._takes_native
            and native_ops(config, dtype, self.cache_dir, stored) is not None
        )
        return stored if is_kept else NO_QUANTIZATION

    def _ops(self, config: ModelConfig, dtype: str, platform: str, quantize: str) -> Ops:
        if self.shards is not None:
            shard = shard_of(config, self.shards.num_shards)
            return _xla_ops(shard, dtype, platform, self.attention, self.page_size, quantize)
        if self.ops is not None:
            return self.ops
        return default_ops(config, dtype, self.cache_dir, self.attention, self.page_size, quantize)


def default_ops(
    config: ModelConfig,
    dtype: str,
    cache_dir: Path,
    attention: str = AUTO,
    page_size: int = 16,
    quantize: str = NO_QUANTIZATION,
) -> Ops:
    """Return the best ops of this platform: native kernels on a CPU that has them, else XLA.

    Args:
        cache_dir: cache of the kernels that are built on first use.
        attention: a kernel other than "auto" is combined with XLA for all else.
        page_size: of the KV pool, in tokens.
        quantize: "int8", "int4" or "none".

    Raises:
        ConfigError: the attention kernel does not support this model on this platform, or weights
            cannot be quantised here.
    """
    platform = jax.default_backend()
    is_native = platform == "cpu" and attention == AUTO
    if is_native and (ops := native_ops(config, dtype, cache_dir, quantize)):
        log.info("attention on cpu: native kernels")
        return ops
    return _xla_ops(config, dtype, platform, attention, page_size, quantize)


def _xla_ops(
    config: ModelConfig, dtype: str, platform: str, attention: str, page_size: int, quantize: str
) -> XlaOps:
    """Return XLA's ops with an attention kernel of this platform; see ``default_ops``."""
    if quantize == INT4:
        raise ConfigError(
            "--quantize int4 needs the CPU kernels (a C++ compiler, --attention auto, --dtype "
            "float32 or bfloat16, heads of a multiple of 16 up to 256, no --tensor-parallel); "
            "use int8 for this model on this machine"
        )
    attend = choose_attention(attention, KernelTarget.local(config, dtype, page_size))
    return XlaOps(attend, platform, quantize)


def _for_len(config: ModelConfig, max_model_len: int | None) -> ModelConfig:
    """Return ``ModelConfig.for_len``; warn if short prompts are computed with long factors."""
    if max_model_len is not None:
        config = config.for_len(max_model_len)
    rope = config.rope
    if rope.factors != rope.short_factors:
        log.warning(
            "prompts of up to %d tokens are computed with LongRoPE's long factors, too: cached "
            "blocks stay valid only if all prompts use one set; for the short factors lower "
            "max_model_len (--max-model-len) to %d or less",
            *(rope.original_max_len, rope.original_max_len),
        )
    return config


def _check_memory(model: Model, device: Device, described: str, num_devices: int) -> None:
    """Raise CapacityError if the weights do not fit in free memory; called before reading them."""
    nbytes = model.weights_bytes
    free = free_device_bytes(device)
    needed, where = nbytes // num_devices, f"on {described}"
    remedies = ["a smaller dtype (--dtype bfloat16)"] if model.dtype == "float32" else []
    if model.config.moe is None:
        remedies.append("fewer bits (--quantize int8, or int4 on CPU)")
    # The device uses the host's memory.
    if free is None:
        free, needed, where = free_host_bytes(), nbytes, "on the host"
    else:
        remedies.append("more devices (--tensor-parallel)")
    advice = " or ".join(remedies or ["a smaller model"])
    if needed > free:
        raise CapacityError(
            f"the weights need {needed / 1e9:.1f} GB in {model.dtype}, but only "
            f"{free / 1e9:.1f} GB are free {where} ({(needed - free) / 1e9:.1f} GB short); "
            f"use {advice}"
        )
