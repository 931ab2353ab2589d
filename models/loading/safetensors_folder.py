"""The safetensors files of a Hugging Face folder, read a part of a tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.hf_tensors import Header, plain_name

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

REOPEN_BYTES = 128 << 20


class FolderTensors:
    """Tensors by their plain names. Headers are read at once, contents when they are asked for.

    Attributes:
        problems: missing and unreadable files.
        headers: of all tensors there are, those found twice twice.
    """

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self.problems: list[str] = []
        self.headers: list[Header] = []
        self.files = weight_files(folder, self.problems)
        self._places: dict[str, tuple[Path, str]] = {}  # file, and name in it
        self._path: Path | None = None  # of the file that is open
        self._file: Any = None
        self._num_bytes = 0  # read since it was opened
        for path in self.files:
            try:
                for name, shape, dtype in _headers(path):
                    key = plain_name(name)
                    self.headers.append((key, shape, dtype))
                    self._places[key] = path, name
            except (SafetensorError, OSError) as error:
                self.problems.append(_unreadable(path, error))

    def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, a copy.

        Raises:
            ModelLoadError: its file has become unreadable.
        """
        path, name = self._places[key]
        try:
            # What was read stays in memory as long as the file is open: open it now and then anew.
            if path != self._path or self._num_bytes >= REOPEN_BYTES:
                self._file = None  # before the next is there
                self._file = safe_open(path, framework="numpy")
                self._path, self._num_bytes = path, 0
            part: np.ndarray = self._file.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            self._path = None
            raise ModelLoadError(f"{self.source}: {_unreadable(path, error)}") from error
        self._num_bytes += part.nbytes
        return part


def weight_files(folder: Path, problems: list[str]) -> list[Path]:
    """The safetensors files of a folder; appends to ``problems`` what is missing."""
    index = folder / INDEX_FILE
    # os.path, because Path.exists raises for names that are too long and folders that are closed.
    if os.path.exists(folder / WEIGHTS_FILE):  # before an index, as transformers has it
        return [folder / WEIGHTS_FILE]
    if not os.path.exists(index):
        problems.append(f"missing file {WEIGHTS_FILE} (or {INDEX_FILE} and its shards)")
        return []
    try:
        shards = sorted({str(one) for one in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        problems.append(f"{INDEX_FILE} cannot be read: {error!r}")
        return []
    problems += [
        f"missing shard {shard}; download it again"
        for shard in shards
        if not os.path.exists(folder / shard)
    ]
    return [folder / shard for shard in shards if os.path.exists(folder / shard)]


def _headers(path: Path) -> Iterator[Header]:
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, it is no dict
            tensor = file.get_slice(name)
            yield name, tuple(tensor.get_shape()), tensor.get_dtype()


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path.name} is truncated or corrupt, download it again: {error}"
