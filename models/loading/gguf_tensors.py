"""The weights of a .gguf file, dequantised as they are read, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.hf_tensors import Header
from kvflow_jax.models.loading.weights import Index

# GGUF tensor without its ".weight" or ".bias", "blk.<layer>." before it -> Hugging Face name
_OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_NAMES_OF = {
    "gemma3": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}
_EXPERT_NAMES = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}

# What llama.cpp divides RoPE's frequencies by: read into the config, no weights.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a Hugging Face tensor is: a tensor's rows, in their order, or those of one expert."""

    tensor: Any
    expert: int | None = None
    order: np.ndarray | None = None  # i64[rows]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = [int(size) for size in self.tensor.shape[::-1]]
        return tuple(sizes if self.expert is None else sizes[1:])

    def read(self, index: Index) -> np.ndarray:
        """A part, dequantised."""
        from gguf.quants import dequantize

        kind, rows = self.tensor.tensor_type, index[0]
        own = rows if self.order is None else self.order[rows]
        if len(index) == 1:  # short, and in some types a row of bytes
            return dequantize(self.tensor.data, kind)[own]
        data = self.tensor.data if self.expert is None else self.tensor.data[self.expert]
        return dequantize(data[own], kind)[:, index[1]]


class GgufTensors:
    """A file's tensors under their Hugging Face names, dequantised as they are read."""

    def __init__(
        self, path: Path, tensors: Iterable[Any], architecture: str, config: ModelConfig
    ) -> None:
        self.source = str(path)
        self.problems: list[str] = []
        self._places: dict[str, _Place] = {}
        for tensor in tensors:
            if tensor.name not in ROPE_FACTORS:
                self._places |= _places(tensor, architecture, config)

    @property
    def headers(self) -> list[Header]:
        return [(key, place.shape, "float32") for key, place in self._places.items()]

    def read(self, key: str, index: Index) -> np.ndarray:
        return self._places[key].read(index)


def _places(tensor: Any, architecture: str, config: ModelConfig) -> dict[str, _Place]:
    """Under which Hugging Face names a tensor is; experts lie in one together."""
    stem, _, kind = tensor.name.rpartition(".")
    if not stem.startswith("blk."):
        return {f"{_OUTER_NAMES.get(stem, stem)}.{kind}": _Place(tensor)}
    _, layer, part = stem.split(".", 2)
    if part in _EXPERT_NAMES:
        return {
            f"model.layers.{layer}.mlp.experts.{e}.{_EXPERT_NAMES[part]}.{kind}": _Place(tensor, e)
            for e in range(len(tensor.data))
        }
    order = None
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        order = _half_split_order(int(tensor.shape[-1]), config.head_dim)
    names = _LAYER_NAMES | _NAMES_OF.get(config.family, {})
    return {f"model.layers.{layer}.{names.get(part, part)}.{kind}": _Place(tensor, order=order)}


def _half_split_order(num_rows: int, head_dim: int) -> np.ndarray | None:
    """Where rows of Q and K are in GGUF's order for Llama: it interleaves what RoPE pairs."""
    if num_rows % head_dim:
        return None  # misshapen, as the check of the headers will say
    pairs = np.arange(num_rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
