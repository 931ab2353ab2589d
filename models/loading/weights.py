"""Sources of weights, each read one slice of one weight at a time.

    files -> Tensors -> NamedWeights ----------+
                            |                  |-> place -> devices
                            +-> Orbax -> CheckpointWeights

Host memory never holds a whole model on the way to a device: ``placement.place`` allocates the
slice of a weight that a device will hold, and a source fills it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.hf_tensors import (
    EMBEDDING,
    HEAD,
    Header,
    WeightSlice,
    header_problems,
    weight_slices,
)
from kvflow_jax.models.model import Model

# One slice an axis, each with start and stop.
Index = tuple[slice, ...]

# Of one message: a config may name a hundred thousand tensors that the files lack.
MAX_SHOWN_PROBLEMS = 200

_FUSED_EXPERTS = re.compile(r".*\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)(\.weight)?")

# Rows of a tensor that are read and cast at a time.
BLOCK_ROWS = 128


class WeightSource(Protocol):
    """The weights of a model as ``Model.stacked_specs`` names them.

    Attributes:
        is_packed: each has been packed by ``Model.pack``, a layer for itself; else they have the
            shapes of ``Model.stacked_specs``.
    """

    @property
    def is_packed(self) -> bool: ...

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        """Fill ``out`` with ``weight[index]``, in the dtype of ``out``.

        Raises:
            ModelLoadError: the weight cannot be read.
        """
        ...

    def raise_problems(self) -> None:
        """Raise a ``ModelLoadError`` that lists every problem found while reading, if any."""
        ...


class Tensors(Protocol):
    """The tensors of one or several files under their Hugging Face names.

    Attributes:
        source: path of the files, for messages.
        problems: missing and unreadable files.
    """

    source: str
    problems: list[str]

    @property
    def headers(self) -> Sequence[Header]:
        """Name, shape and dtype of each tensor."""
        ...

    def read(self, key: str, index: Index) -> np.ndarray:
        """Return ``tensor[index]``."""
        ...


def tensor_problems(model: Model, tensors: Tensors) -> list[str]:
    """Return the problems of a checkpoint's files and tensors, a message each.

    If no tensor can be read, those of the files say why: a list of missing tensors would hide it.
    """
    if tensors.problems and not tensors.headers:
        return tensors.problems
    fused = [key for key, _, _ in tensors.headers if _FUSED_EXPERTS.fullmatch(key)]
    if fused:
        return [
            *tensors.problems,
            f"tensor {fused[0]} has the matrices of all experts of a layer, which is not "
            "supported; give a checkpoint with tensors of each expert (experts.0.down_proj.weight)",
        ]
    return tensors.problems + header_problems(model, tensors.headers)


class NamedWeights:
    """A ``WeightSource`` that casts, transposes and fuses tensors block by block.

    Args:
        norm_offset: added to the weights of norms, see ``ModelFamily``.

    Raises:
        ModelLoadError: listing every missing, misshapen or unexpected tensor and unreadable file,
            before a tensor is read.
    """

    is_packed = False

    def __init__(self, model: Model, tensors: Tensors, *, norm_offset: float = 0.0) -> None:
        self._tensors, self._norm_offset = tensors, norm_offset
        self._problems: list[str] = []
        self._raise_if(
            tensor_problems(model, tensors),
            "; download the model again, or check that its config belongs to these files",
        )
        # (weight, layer and expert) -> the tensors that are fused in it, by name.
        self._tensors_of: defaultdict[tuple[str, tuple[int, ...]], list[tuple[str, WeightSlice]]]
        self._tensors_of = defaultdict(list)
        for key, target in weight_slices(model).items():
            self._tensors_of[target.name, target.index].append((key, target))
        # Number of leading axes, layer and expert, that no tensor has.
        self._num_stacked_axes = {name: len(index) for name, index in self._tensors_of}
        if model.config.tie_embeddings:
            self._check_tied(np.dtype(model.weights_dtype))

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        num_stacked = self._num_stacked_axes[name]
        stacked, inner = index[:num_stacked], index[num_stacked:]
        for layer_expert in product(*(range(axis.start, axis.stop) for axis in stacked)):
            position = tuple(i - axis.start for i, axis in zip(layer_expert, stacked, strict=True))
            for key, target in self._tensors_of[name, layer_expert]:
                self._fill(out[position], key, target, inner)

    def raise_problems(self) -> None:
        self._raise_if(self._problems)

    def _fill(self, out: np.ndarray, key: str, target: WeightSlice, index: Index) -> None:
        """Fill the columns of ``out = weight[index]`` that one tensor provides, if any."""
        *rows, columns = index
        start = max(columns.start, target.columns.start)
        stop = min(columns.stop, target.columns.stop)
        if start >= stop:
            return
        out = out[..., start - columns.start : stop - columns.start]
        source = [*rows, slice(start - target.columns.start, stop - target.columns.start)]
        if target.transposed:
            out, source = out.swapaxes(-1, -2), source[::-1]
        with np.errstate(over="ignore"):
            # Blocks fit the processor's cache: numpy transposes whole arrays 8 times slower, and
            # fresh memory for a whole tensor costs 10 times as much as reading it.
            for row in range(0, len(out), BLOCK_ROWS):
                block = out[row : row + BLOCK_ROWS]
                first = source[0].start + row
                values = self._tensors.read(key, (slice(first, first + len(block)), *source[1:]))
                if self._norm_offset and target.name.endswith("norm.weight"):
                    values = values.astype(np.float32) + np.float32(self._norm_offset)
                block[...] = values
        if out.dtype == np.float16 and not np.isfinite(out).all():
            problem = f"{key}: too large for float16; load with dtype bfloat16"
            # A tensor is listed once, however many of its slices overflow.
            if problem not in self._problems:
                self._problems.append(problem)

    def _check_tied(self, dtype: np.dtype) -> None:
        """Raise if the files have an lm_head that differs from the embedding it is tied to."""
        shapes = {key: shape for key, shape, _ in self._tensors.headers}
        if HEAD not in shapes:
            return
        num_rows, width = shapes[EMBEDDING]
        is_same = shapes[HEAD] == shapes[EMBEDDING]
        for row in range(0, num_rows if is_same else 0, BLOCK_ROWS):
            block = slice(row, min(row + BLOCK_ROWS, num_rows)), slice(0, width)
            head, embedding = (
                self._tensors.read(key, block).astype(dtype) for key in (HEAD, EMBEDDING)
            )
            is_same = is_same and np.array_equal(head, embedding, equal_nan=True)
        if not is_same:
            self._raise_if(
                [
                    f"{HEAD} differs from the embedding that config.json ties it to; set "
                    "tie_word_embeddings to false in config.json"
                ]
            )

    def _raise_if(self, problems: list[str], advice: str = "") -> None:
        if problems:
            if (num_more := len(problems) - MAX_SHOWN_PROBLEMS) > 0:
                problems = [*problems[:MAX_SHOWN_PROBLEMS], f"and {num_more} more"]
            raise ModelLoadError(
                f"cannot load the weights in {self._tensors.source}{advice}:\n- "
                + "\n- ".join(problems)
            )
