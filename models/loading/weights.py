"""Where weights come from: sources that are asked for a part of one weight at a time.

    files -> Tensors -> NamedWeights ----+
                            |            |-> place -> devices
                            +-> Orbax -> KeptWeights

Nothing holds a whole model on its way: ``placing.place`` asks for what one device is to hold of a
weight, and a source fills that memory.
"""

from __future__ import annotations

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
    Target,
    problems_of,
    targets_of,
)
from kvflow_jax.models.model import Model

Index = tuple[slice, ...]  # one a dimension, each with start and stop


BLOCK_ROWS = 128


class WeightSource(Protocol):
    """The plain weights of a model, stacked: see ``Model.stacked_specs``."""

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        """Fill ``out`` with ``weight[index]``, in the dtype of ``out``.

        Raises:
            ModelLoadError: it cannot be read.
        """

    def finish(self) -> None:
        """Nothing more is read.

        Raises:
            ModelLoadError: listing what was found wrong while reading.
        """


class Tensors(Protocol):
    """Tensors of a file or of several, under Hugging Face's names.

    Attributes:
        source: where they are read from, for messages.
        problems: what is wrong with the files.
    """

    source: str
    problems: list[str]

    @property
    def headers(self) -> Sequence[Header]:
        """What there is."""

    def read(self, key: str, index: Index) -> np.ndarray:
        """A part of a tensor."""


class NamedWeights:
    """Weights read out of tensors, cast and laid in their place block by block.

    Args:
        norm_offset: added to the weights of norms.

    Raises:
        ModelLoadError: listing every missing, misshapen or unexpected tensor and unreadable file,
            before a weight is read.
    """

    def __init__(self, model: Model, tensors: Tensors, *, norm_offset: float = 0.0) -> None:
        self._tensors, self._norm_offset = tensors, norm_offset
        self._problems: list[str] = []
        self._refuse(tensors.problems + problems_of(model, tensors.headers))
        self._parts: dict[tuple[str, tuple[int, ...]], list[tuple[str, Target]]] = defaultdict(list)
        for key, target in targets_of(model).items():
            self._parts[target.name, target.at].append((key, target))
        self._depths = {name: len(at) for name, at in self._parts}
        if model.config.tie_embeddings:
            self._check_tied(np.dtype(model.dtype))

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        depth = self._depths[name]
        outer, within = index[:depth], index[depth:]
        for at in product(*(range(one.start, one.stop) for one in outer)):
            place = out[tuple(i - one.start for i, one in zip(at, outer, strict=True))]
            for key, target in self._parts[name, at]:
                self._lay(key, target, within, place)

    def finish(self) -> None:
        self._refuse(self._problems)

    def _lay(self, key: str, target: Target, index: Index, out: np.ndarray) -> None:
        """Fill of ``out``, the part ``index`` of a matrix or vector, what this tensor has of it."""
        *rows, columns = index
        start = max(columns.start, target.columns.start)
        stop = min(columns.stop, target.columns.stop)
        if start >= stop:
            return
        place = out[..., start - columns.start : stop - columns.start]
        wanted = [*rows, slice(start - target.columns.start, stop - target.columns.start)]
        if target.transposed:
            place, wanted = place.swapaxes(-1, -2), wanted[::-1]
        with np.errstate(over="ignore"):
            # In blocks that fit the cache: numpy transposes whole arrays 8 times slower, and fresh
            # memory for a whole tensor costs 10 times what reading it does.
            for at in range(0, len(place), BLOCK_ROWS):
                block = place[at : at + BLOCK_ROWS]
                first = wanted[0].start + at
                part = self._tensors.read(key, (slice(first, first + len(block)), *wanted[1:]))
                if self._norm_offset and target.name.endswith("norm.weight"):
                    part = part.astype(np.float32) + np.float32(self._norm_offset)
                block[...] = part
        if place.dtype == np.float16 and not np.isfinite(place).all():
            problem = f"{key}: too large for float16; load with dtype bfloat16"
            if problem not in self._problems:  # by another part of it
                self._problems.append(problem)

    def _check_tied(self, dtype: np.dtype) -> None:
        """An output projection that stands beside the embedding it is tied to must be the same."""
        shapes = {key: shape for key, shape, _ in self._tensors.headers}
        if HEAD not in shapes:
            return
        num_rows, width = shapes[EMBEDDING]
        is_same = shapes[HEAD] == shapes[EMBEDDING]
        for at in range(0, num_rows if is_same else 0, BLOCK_ROWS):
            block = slice(at, min(at + BLOCK_ROWS, num_rows)), slice(0, width)
            head, embedding = (
                self._tensors.read(key, block).astype(dtype) for key in (HEAD, EMBEDDING)
            )
            is_same = is_same and np.array_equal(head, embedding, equal_nan=True)
        if not is_same:
            self._refuse(
                [
                    f"{HEAD} is not the embedding, to which config.json ties it: set "
                    "tie_word_embeddings to false"
                ]
            )

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise ModelLoadError(
                f"the weights in {self._tensors.source} do not fit the model:\n- "
                + "\n- ".join(problems)
            )
