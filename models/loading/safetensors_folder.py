"""Reads slices of the tensors in the safetensors files of a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import shortened
from kvflow_jax.models.json_file import read_json
from kvflow_jax.models.loading.hf_tensors import Header, canonical_name

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Weights in forms that are not read. Pickles can run code.
OTHER_FILES = (
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"),
    *("consolidated.00.pth", "tf_model.h5", "flax_model.msgpack"),
)

# A hundred thousand tensors have 12 MB.
MAX_HEADER_BYTES = 32 << 20

# Bytes read from a file after which it is reopened.
REOPEN_BYTES = 128 << 20


class FolderTensors:
    """The tensors of a folder under their canonical names: a ``Tensors`` of ``NamedWeights``.

    The constructor reads headers only.

    Attributes:
        problems: missing and unreadable files.
        headers: of all tensors; a tensor that two files have is listed twice.
        files: the safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self.problems: list[str] = []
        self.headers: list[Header] = []
        self.files = weight_files(folder, self.problems)
        # Canonical name -> file and the name in it.
        self._locations: dict[str, tuple[Path, str]] = {}
        # The open file, its path, and the bytes read since it was opened.
        self._file: Any = None
        self._path: Path | None = None
        self._num_bytes = 0
        for path in self.files:
            try:
                for name, shape, dtype in _headers(path):
                    key = canonical_name(name)
                    self.headers.append((key, shape, dtype))
                    self._locations[key] = path, name
            except (SafetensorError, OSError) as error:
                self.problems.append(_unreadable(path, error))

    def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a copy of ``tensor[index]``.

        Raises:
            ModelLoadError: the file has become unreadable.
        """
        path, name = self._locations[key]
        try:
            # Pages that were read stay mapped while the file is open: reopening it frees them.
            if path != self._path or self._num_bytes >= REOPEN_BYTES:
                # Close the old file before the new one is mapped.
                self._file = None
                self._file = safe_open(path, framework="numpy")
                self._path, self._num_bytes = path, 0
            tensor_slice: np.ndarray = self._file.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            self._path = None
            raise ModelLoadError(f"{self.source}: {_unreadable(path, error)}") from error
        self._num_bytes += tensor_slice.nbytes
        return tensor_slice


def weight_files(folder: Path, problems: list[str]) -> list[Path]:
    """Return the safetensors files of a folder; append missing files to ``problems``."""
    index = folder / INDEX_FILE
    # Path.exists raises for a name that is too long and a folder without search permission;
    # os.path.exists does not. As in transformers, a single file takes precedence over an index.
    if os.path.exists(folder / WEIGHTS_FILE):
        return [folder / WEIGHTS_FILE]
    if not os.path.exists(index):
        problems.append(_missing_weights(folder))
        return []
    try:
        weight_map = read_json(index).get("weight_map")
    except (ModelLoadError, OSError) as error:
        problems.append(f"{INDEX_FILE} cannot be read, download it again: {error}")
        return []
    if not isinstance(weight_map, dict):
        problems.append(f"{INDEX_FILE} cannot be read, download it again: it has no weight_map")
        return []
    shards = sorted({str(name) for name in weight_map.values()})
    # A name with a path could lead out of the folder.
    if others := [shard for shard in shards if Path(shard).name != shard]:
        problems.append(f"{INDEX_FILE} names {shortened(others[0])!r}, which is no file name")
        return []
    problems += [
        f"missing shard {shard}; download it again"
        for shard in shards
        if not os.path.exists(folder / shard)
    ]
    return [folder / shard for shard in shards if os.path.exists(folder / shard)]


def _missing_weights(folder: Path) -> str:
    """Return what to do about a folder without safetensors files, in one line."""
    if os.path.exists(folder / "adapter_config.json"):
        return (
            "it has an adapter (adapter_config.json) and no weights, and adapters are not "
            "supported; merge it into its base model with peft: merge_and_unload(), then "
            "save_pretrained() to a new folder"
        )
    message = f"missing file {WEIGHTS_FILE} (or {INDEX_FILE} and its shards); "
    others = [name for name in OTHER_FILES if os.path.exists(folder / name)]
    if others:
        return message + (
            f"{others[0]} is there and is not read: convert it with transformers, "
            "from_pretrained() and then save_pretrained(), which writes safetensors"
        )
    return message + "download the model again, or give a folder with safetensors files"


def _headers(path: Path) -> Iterator[Header]:
    # Opening a FIFO would block until a process writes to it.
    if not path.is_file():
        raise SafetensorError("it is no regular file")
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    # The library parses up to 100 MB of JSON, which takes a gigabyte of memory.
    if header_bytes > MAX_HEADER_BYTES:
        raise SafetensorError(f"its header has {header_bytes} bytes")
    with safe_open(path, framework="numpy") as file:
        # file is not iterable: it has no __iter__.
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_slice(name)
            yield name, tuple(tensor.get_shape()), tensor.get_dtype()


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path.name} is truncated or corrupt, download it again: {error}"
