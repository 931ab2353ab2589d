"""How long a step takes: a model's work over a machine's rates (the roofline model)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.runtime.batch import Batch


@dataclass(frozen=True)
class ModelShape:
    """What a model costs, from its sizes alone. Weights and KV are of one type.

    Attributes:
        itemsize: bytes of a number.
        is_tied: whether one matrix serves both embedding and logits.
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
        own = ("name", "itemsize", "is_tied")
        same = {f.name: getattr(config, f.name) for f in fields(cls) if f.name not in own}
        return cls(name=name, itemsize=itemsize, **same)

    @property
    def _layer_weights(self) -> int:
        qkv_size = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        out_size = self.num_heads * self.head_dim
        return self.hidden_size * (qkv_size + out_size + 3 * self.intermediate_size)

    @property
    def flops_per_token(self) -> int:
        """Of the projections of all layers: two for each weight."""
        return 2 * self.num_layers * self._layer_weights

    @property
    def flops_per_row(self) -> int:
        """Of the logits of a row, once a row however many tokens it has."""
        return 2 * self.hidden_size * self.vocab_size

    @property
    def flops_per_pair(self) -> int:
        """Of attention for each pair of a query and a position it sees: scores and their sum."""
        return 4 * self.num_layers * self.num_heads * self.head_dim

    @property
    def weight_bytes(self) -> int:
        """That a step reads: every layer, and the matrix of the logits."""
        weights = self.num_layers * self._layer_weights + self.hidden_size * self.vocab_size
        return weights * self.itemsize

    @property
    def param_bytes(self) -> int:
        """Of all weights, the embedding included."""
        embedding = 0 if self.is_tied else self.hidden_size * self.vocab_size * self.itemsize
        return self.weight_bytes + embedding

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Profile:
    """Rates that a machine achieves with a model; not its peaks.

    Attributes:
        flops_per_s: of matrix products with many rows.
        attention_flops_per_s: of prompts' attention, which is less regular.
        mem_bytes_per_s: at which weights and KV are read.
        launch_s: of the device, for each step, beyond its work.
        host_s: of the engine's loop, for each step; hidden while the device is busy.
        link_bytes_per_s: between host and device, each way.
        link_latency_s: for each transfer.
        memory_bytes: of the device; 0: not known.
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
        """So many devices that share every step, each with a link of its own.

        They add up to 0.9 of their number where products are split among them; a step's launch
        takes 10 us a device longer, for what they tell each other.
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

    def step_s(self, shape: ModelShape, batch: Batch) -> float:
        """Seconds of the device for a batch."""
        return max(self.compute_s(shape, work_of(batch)), self.memory_s(shape, work_of(batch))) + (
            self.launch_s
        )

    def compute_s(self, shape: ModelShape, work: Work) -> float:
        flops = work.num_tokens * shape.flops_per_token + work.num_rows * shape.flops_per_row
        attention_s = work.num_pairs * shape.flops_per_pair / self.attention_flops_per_s
        return flops / self.flops_per_s + attention_s

    def memory_s(self, shape: ModelShape, work: Work) -> float:
        num_bytes = shape.weight_bytes + work.num_read_tokens * shape.kv_bytes_per_token
        return num_bytes / self.mem_bytes_per_s

    def transfer_s(self, num_bytes: int) -> float:
        """Seconds of a transfer over the link."""
        return self.link_latency_s + num_bytes / self.link_bytes_per_s

    def copy_s(self, num_bytes: int) -> float:
        """Seconds of a copy within the device: read and written."""
        return 2 * num_bytes / self.mem_bytes_per_s

    def link_ratio(self, shape: ModelShape) -> float:
        """How long a token's KV takes over the link, as a share of computing it anew.

        Without attention, as ``CacheConfig.link_ratio`` has it.
        """
        load_s = shape.kv_bytes_per_token / self.link_bytes_per_s
        return load_s * self.flops_per_s / shape.flops_per_token

    @classmethod
    def read(cls, path: Path) -> Profile:
        """The profile in a JSON file that ``experiments.bench.fit_profile`` has written."""
        return cls(**json.loads(path.read_text())["profile"])

    def to_dict(self) -> dict[str, str | float]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a batch asks of a device.

    Attributes:
        num_tokens: padding included, for it is multiplied all the same.
        num_rows: of which logits are computed.
        num_pairs: of a query and a position that it sees.
        num_read_tokens: tokens whose KV is read, again for each row.
    """

    num_tokens: int
    num_rows: int
    num_pairs: int
    num_read_tokens: int


def work_of(batch: Batch) -> Work:
    start, length = batch.query_start.astype(np.int64), batch.query_len.astype(np.int64)
    return Work(
        num_tokens=batch.shape.num_tokens,
        num_rows=batch.shape.num_rows,
        num_pairs=int((length * start + length * (length + 1) // 2).sum()),
        num_read_tokens=int((start + length)[length > 0].sum()),
    )
