"""The tensors of a .gguf file, dequantised a few rows at a time as they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.base import GgufForm
from kvflow_jax.models.loading.gguf_header import GgufTensor
from kvflow_jax.models.loading.gguf_rope import ROPE_FACTORS
from kvflow_jax.models.loading.hf_tensors import Header, weight_slices
from kvflow_jax.models.loading.weights import Index
from kvflow_jax.models.model import Model

if TYPE_CHECKING:
    from gguf import TensorNameMap

_EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")
# One tensor may hold both: first the rows of the gate, then those of the up projection.
_GATE_OR_UP = re.compile(r"\.ffn_(gate|up)_exps\.")
_QUERY_OR_KEY = (".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias")


@dataclass(frozen=True, slots=True)
class _TensorView:
    """A Hugging Face tensor as a view of a GGUF tensor.

    Attributes:
        tensor: its shape is in GGML's order, innermost axis first.
        expert: index of the expert whose matrix this is, if the tensor stacks those of all experts.
        order: the tensor's row that is row i of the view; None: the view has all rows in order.
    """

    tensor: GgufTensor
    expert: int | None = None
    order: np.ndarray | None = None  # i64[num_rows]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = self.tensor.shape[::-1]
        sizes = sizes if self.expert is None else sizes[1:]
        return sizes if self.order is None else (len(self.order), *sizes[1:])

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
    """The tensors of a file under their Hugging Face names: a ``Tensors`` of ``NamedWeights``.

    A tensor that the model does not need keeps its name.

    Raises:
        ModelLoadError: the installed ``gguf`` is too old to know the architecture.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, GgufTensor], form: GgufForm, model: Model
    ) -> None:
        self.source = str(path)
        self.problems: list[str] = []
        names = name_map(form.architecture, model.config.num_layers)
        self._views: dict[str, _TensorView] = {}
        used = {*ROPE_FACTORS}
        num_experts = model.config.moe.num_experts if model.config.moe else 0
        for key in weight_slices(model):
            name, expert = gguf_name(names, key)
            fused = _GATE_OR_UP.sub(".ffn_gate_up_exps.", name)
            is_fused = name not in tensors and fused in tensors
            name = fused if is_fused else name
            if (tensor := tensors.get(name)) is None:
                continue
            if expert is not None and tensor.shape[2:] != (num_experts,):
                if name not in used:
                    self.problems.append(
                        f"{name}: expected {num_experts} matrices, found the shape "
                        f"{list(tensor.shape[::-1])}"
                    )
                used.add(name)
                continue
            order = None
            if form.interleaves_qk and key.endswith(_QUERY_OR_KEY):
                order = _half_split_order(int(tensor.shape[-1]), model.config.head_dim)
            elif is_fused:
                half = tensor.shape[1] // 2
                order = np.arange(half) + (half if ".up_proj." in key else 0)
            self._views[key] = _TensorView(tensor, expert, order)
            used.add(name)
        self._views |= {
            name: _TensorView(tensor) for name, tensor in tensors.items() if name not in used
        }

    @property
    def headers(self) -> list[Header]:
        return [(key, view.shape, "float32") for key, view in self._views.items()]

    def read(self, key: str, index: Index) -> np.ndarray:
        return self._views[key].read(index)


def name_map(architecture: str, num_layers: int) -> TensorNameMap:
    """Return the names that llama.cpp gives to the tensors of an architecture.

    Raises:
        ModelLoadError: the installed ``gguf`` does not know the architecture.
    """
    import gguf

    for known, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(known, num_layers)
    raise ModelLoadError(
        f"the installed gguf does not know architecture {architecture!r}; upgrade it with: "
        "pip install --upgrade gguf"
    )


def gguf_name(names: TensorNameMap, key: str) -> tuple[str, int | None]:
    """Return the GGUF name of a Hugging Face tensor, and its index if it is stacked in there.

    The name is empty if llama.cpp has none for it.
    """
    expert = _EXPERT.search(key)
    name = names.get_name(_EXPERT.sub("", key), try_suffixes=(".weight", ".bias"))
    return name or "", None if expert is None else int(expert[1])


def _half_split_order(num_rows: int, head_dim: int) -> np.ndarray | None:
    """Return the row permutation that undoes llama.cpp's Q/K permute, i64[num_rows].

    llama.cpp interleaves the two rows of each RoPE pair; Hugging Face keeps them half a head apart.
    """
    # A misshapen tensor: the check of the headers reports it.
    if num_rows % head_dim:
        return None
    pairs = np.arange(num_rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
