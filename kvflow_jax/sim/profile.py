"""Duration of a step by the roofline model: a model's work over a machine's rates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.runtime.batch import Batch


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder, and the work and memory that follow from them.

    Attributes:
        itemsize: bytes of a number, in weights and KV alike.
        is_tied: True if embedding and LM head share one matrix.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    itemsize: int
    is_tied: bool = False

    @classmethod
    def of(cls, name: str, config: ModelConfig, itemsize: int) -> ModelShape:
        """Return the shape of a model configuration."""
        not_in_config = ("name", "itemsize", "is_tied")
        sizes = {
            f.name: getattr(config, f.name) for f in fields(cls) if f.name not in not_in_config
        }
        return cls(name=name, itemsize=itemsize, **sizes)

    @property
    def _layer_weights(self) -> int:
        qkv_size = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        out_size = self.num_heads * self.head_dim
        return self.hidden_size * (qkv_size + out_size + 3 * self.intermediate_size)

    @property
    def flops_per_token(self) -> int:
        """FLOPs of all layers' projections for a token: two for each weight."""
        return 2 * self.num_layers * self._layer_weights

    @property
    def flops_per_row(self) -> int:
        """FLOPs of the logits of a row, which are computed once for each row."""
        return 2 * self.hidden_size * self.vocab_size

    @property
    def flops_per_pair(self) -> int:
        """FLOPs of attention for a pair of a query and a position it attends to: scores and sum."""
        return 4 * self.num_layers * self.num_heads * self.head_dim

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads: all layers and the LM head."""
        weights = self.num_layers * self._layer_weights + self.hidden_size * self.vocab_size
        return weights * self.itemsize

    @property
    def param_bytes(self) -> int:
        """Bytes of all weights, including the embedding."""
        embedding = 0 if self.is_tied else self.hidden_size * self.vocab_size * self.itemsize
        return self.weight_bytes + embedding

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token's K and V in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Profile:
    """Rates that a machine achieves with a model, which are below its peaks.

    Attributes:
        flops_per_s: FLOP/s of matrix products with many rows.
        attention_flops_per_s: FLOP/s in the attention of prompts, which is less regular.
        mem_bytes_per_s: bandwidth at which weights and KV are read.
        launch_s: seconds of the device for each step, beyond its work.
        host_s: seconds of the engine loop for each step, hidden while the device is busy.
        link_bytes_per_s: bandwidth between host and device, in each direction.
        link_latency_s: latency of each transfer, seconds.
        memory_bytes: memory of the device; 0: unknown.
    """

    name: str
    flops_per_s: float
    attention_flops_per_s: float
    mem_bytes_per_s: float
    launch_s: float
    host_s: float
    link_bytes_per_s: float
    link_latency_s: float
    memory_bytes: float = 0.0

    def with_devices(self, num_devices: int) -> Profile:
        """Return the profile of ``num_devices`` with tensor parallelism, each with its own link.

        Compute and memory bandwidth scale by 0.9 of the number of devices. A step's launch takes
        10 us longer for each device, for the all-reduces.
        """
        if num_devices == 1:
            return self
        return replace(
            self,
            name=f"{self.name} x{num_devices}",
            flops_per_s=0.9 * num_devices * self.flops_per_s,
            attention_flops_per_s=0.9 * num_devices * self.attention_flops_per_s,
            mem_bytes_per_s=0.9 * num_devices * self.mem_bytes_per_s,
            launch_s=self.launch_s + 10e-6 * num_devices,
            link_bytes_per_s=num_devices * self.link_bytes_per_s,
            memory_bytes=num_devices * self.memory_bytes,
        )

    def step_s(self, shape: ModelShape, batch: Batch[np.ndarray]) -> float:
        """Return the seconds of a step on the device: the slower of compute and memory."""
        work = work_of(batch)
        return max(self.compute_s(shape, work), self.memory_s(shape, work)) + self.launch_s

    def compute_s(self, shape: ModelShape, work: Work) -> float:
        """Return the seconds that the FLOPs of ``work`` take."""
        flops = work.num_tokens * shape.flops_per_token + work.num_rows * shape.flops_per_row
        attention_s = work.num_pairs * shape.flops_per_pair / self.attention_flops_per_s
        return flops / self.flops_per_s + attention_s

    def memory_s(self, shape: ModelShape, work: Work) -> float:
        """Return the seconds that the memory traffic of ``work`` takes."""
        num_bytes = shape.weight_bytes + work.num_read_tokens * shape.kv_bytes_per_token
        return num_bytes / self.mem_bytes_per_s

    def transfer_s(self, num_bytes: int) -> float:
        """Return the seconds of a transfer over the link."""
        return self.link_latency_s + num_bytes / self.link_bytes_per_s

    def copy_s(self, num_bytes: int) -> float:
        """Return the seconds of a copy within the device, which reads and writes each byte."""
        return 2 * num_bytes / self.mem_bytes_per_s

    def link_ratio(self, shape: ModelShape) -> float:
        """Return the time to load a token's KV over the time to recompute it.

        Recomputation is counted without attention, as in ``CacheConfig.link_ratio``.
        """
        load_s = shape.kv_bytes_per_token / self.link_bytes_per_s
        return load_s * self.flops_per_s / shape.flops_per_token

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Return the profile in a JSON file written by ``experiments.bench.fit_profile``."""
        return cls(**json.loads(path.read_text())["profile"])

    def to_dict(self) -> dict[str, str | float]:
        """Return the fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """Work of a batch on a device.

    Attributes:
        num_tokens: flat tokens; padding counts, because it is computed too.
        num_rows: rows whose logits are computed.
        num_pairs: pairs of a query and a position it attends to.
        num_read_tokens: tokens whose KV is read, counted once for each row that reads them.
    """

    num_tokens: int
    num_rows: int
    num_pairs: int
    num_read_tokens: int


def work_of(batch: Batch[np.ndarray]) -> Work:
    """Return the work of a batch."""
    start, length = batch.query_start.astype(np.int64), batch.query_len.astype(np.int64)
    return Work(
        num_tokens=batch.shape.num_tokens,
        num_rows=batch.shape.num_rows,
        num_pairs=int((length * start + length * (length + 1) // 2).sum()),
        num_read_tokens=int((start + length)[length > 0].sum()),
    )
