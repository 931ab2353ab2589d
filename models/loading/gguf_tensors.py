"""The tensors of a .gguf file, dequantised a few rows at a time as they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.hf_tensors import Header
from kvflow_jax.models.loading.weights import Index

# GGUF name without "blk.<layer>." and without ".weight" or ".bias" -> Hugging Face name
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
# family -> its layer names that differ from the above
_FAMILY_LAYER_NAMES = {
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

# Divisors of RoPE's frequencies in llama.cpp (llama3, LongRoPE long and short). They become part of
# the config and are no weights.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class _TensorView:
    """A Hugging Face tensor as a view of a GGUF tensor.

    Attributes:
        tensor: a ``gguf.ReaderTensor``; its shape is in GGML's order, innermost axis first.
        expert: index of the expert whose matrix this is, if the tensor stacks those of all experts.
        order: the tensor's row that is row i of the view; None keeps the order.
    """

    tensor: Any
    expert: int | None = None
    order: np.ndarray | None = None  # i64[num_rows]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = [int(size) for size in self.tensor.shape[::-1]]
        return tuple(sizes if self.expert is None else sizes[1:])

    def read(self, index: Index) -> np.ndarray:
        """Dequantise a part of one or two axes; returns f32."""
        from gguf.quants import dequantize

        kind, rows = self.tensor.tensor_type, index[0]
        stored_rows = rows if self.order is None else self.order[rows]
        # A vector is short, and some types store it as one row of bytes: dequantise all of it.
        if len(index) == 1:
            return dequantize(self.tensor.data, kind)[stored_rows]
        data = self.tensor.data if self.expert is None else self.tensor.data[self.expert]
        return dequantize(data[stored_rows], kind)[:, index[1]]


class GgufTensors:
    """The tensors of a file under their Hugging Face names: a ``Tensors`` of ``NamedWeights``."""

    def __init__(
        self, path: Path, tensors: Iterable[Any], architecture: str, config: ModelConfig
    ) -> None:
        self.source = str(path)
        self.problems: list[str] = []
        self._views: dict[str, _TensorView] = {}
        for tensor in tensors:
            if tensor.name not in ROPE_FACTORS:
                self._views |= _views(tensor, architecture, config)

    @property
    def headers(self) -> list[Header]:
        return [(key, view.shape, "float32") for key, view in self._views.items()]

    def read(self, key: str, index: Index) -> np.ndarray:
        return self._views[key].read(index)


def _views(tensor: Any, architecture: str, config: ModelConfig) -> dict[str, _TensorView]:
    """Map Hugging Face names to views of a GGUF tensor: several if it stacks experts."""
    stem, _, kind = tensor.name.rpartition(".")
    if not stem.startswith("blk."):
        return {f"{_OUTER_NAMES.get(stem, stem)}.{kind}": _TensorView(tensor)}
    _, layer, part = stem.split(".", 2)
    if part in _EXPERT_NAMES:
        return {
            f"model.layers.{layer}.mlp.experts.{expert}.{_EXPERT_NAMES[part]}.{kind}": _TensorView(
                tensor, expert
            )
            for expert in range(len(tensor.data))
        }
    order = None
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        order = _half_split_order(int(tensor.shape[-1]), config.head_dim)
    names = _LAYER_NAMES | _FAMILY_LAYER_NAMES.get(config.family, {})
    key = f"model.layers.{layer}.{names.get(part, part)}.{kind}"
    return {key: _TensorView(tensor, order=order)}


def _half_split_order(num_rows: int, head_dim: int) -> np.ndarray | None:
    """Return the row permutation that undoes llama.cpp's Q/K permute, i64[num_rows].

    llama.cpp interleaves the two rows of each RoPE pair; Hugging Face keeps them half a head apart.
    """
    # A misshapen tensor: the check of the headers reports it.
    if num_rows % head_dim:
        return None
    pairs = np.arange(num_rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
