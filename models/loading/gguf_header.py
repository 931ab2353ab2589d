"""Reads the header of a .gguf file: its fields, and where its tensors lie.

Files come from strangers. Each length, count, offset and size is compared with the file before
anything is allocated or computed from it, and the work is bounded by ``MAX_VALUES``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

VERSIONS = (2, 3)
# The largest vocabularies have 262,144 tokens: with types, scores and merges 900,000 values.
MAX_VALUES = 1 << 21  # of all arrays together
# The largest vocabulary's texts have 12 MB. A damaged length may be that of the tensors' data.
MAX_TEXT_BYTES = 1 << 28  # of all names and texts together
MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_DIMS = 4  # GGML_MAX_DIMS

_DEFAULT_ALIGNMENT = 32
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
# Types of fields, as ``gguf.GGUFValueType`` numbers them, by their format in ``struct``.
_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
# The least bytes of a field (key, type, value) and of a tensor (name, axes, type, offset).
_MIN_FIELD_BYTES, _MIN_TENSOR_BYTES = 13, 24

Value = str | int | float | bool | list["Value"]


@dataclass(frozen=True, slots=True, eq=False)
class GgufTensor:
    """A tensor of a file, mapped and not read.

    Attributes:
        shape: innermost axis first, as in the file.
        data: floats [..., shape[1], shape[0]], or the bytes of quantised rows.
    """

    tensor_type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Fields and tensors of a file, by name."""

    fields: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Return the fields and the tensors of a file.

    Raises:
        ValueError, struct.error, OSError: the file cannot be read, is truncated or contradicts
            itself.
    """
    # Opening a FIFO would block until a process writes to it.
    if not path.is_file():
        raise ValueError("it is no regular file")
    data = np.memmap(path, np.uint8, mode="r")
    reader = _Reader(data)
    if reader.bytes(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not one of {VERSIONS}")
    num_tensors, num_fields = reader.number("Q"), reader.number("Q")
    reader.check_count(num_tensors, _MIN_TENSOR_BYTES, MAX_TENSORS, "tensors")
    reader.check_count(num_fields, _MIN_FIELD_BYTES, MAX_FIELDS, "fields")
    fields: dict[str, Value] = {}
    for _ in range(num_fields):
        name = reader.text()
        if name in fields:
            raise ValueError(f"two fields are named {name!r:.80}")
        fields[name] = reader.value(reader.number("I"))
    headers: dict[str, _TensorHeader] = {}
    for _ in range(num_tensors):
        name = reader.text()
        if name in headers:
            raise ValueError(f"two tensors are named {name!r:.80}")
        headers[name] = reader.tensor_header(name)
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"the alignment {alignment!r:.80} is no power of 2")
    start = -(-reader.offset // alignment) * alignment
    tensors = {name: header.map(data, start) for name, header in headers.items()}
    return GgufHeader(fields, tensors)


class _Reader:
    """Reads the values of a header in turn."""

    def __init__(self, data: np.ndarray) -> None:
        self.offset = 0
        self._data = memoryview(data)
        self._num_values = self._num_text_bytes = 0

    def number(self, form: str) -> int:
        """Return a number of a format of ``struct``."""
        (value,) = struct.unpack_from(f"<{form}", self._data, self.offset)
        self.offset += struct.calcsize(f"<{form}")
        number: int = value
        return number

    def bytes(self, num_bytes: int) -> bytes:
        if num_bytes > len(self._data) - self.offset:
            raise ValueError(f"{num_bytes} bytes are announced behind its end")
        self.offset += num_bytes
        return self._data[self.offset - num_bytes : self.offset].tobytes()

    def text(self) -> str:
        num_bytes = self.number("Q")
        self.check_count(num_bytes, 1, MAX_TEXT_BYTES - self._num_text_bytes, "bytes")
        self._num_text_bytes += num_bytes
        return self.bytes(num_bytes).decode()

    def value(self, kind: int) -> Value:
        """Return a field's value of a type of ``gguf.GGUFValueType``."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a field has the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def check_count(self, count: int, min_bytes: int, limit: int, what: str) -> None:
        """Raise unless so many items of at least ``min_bytes`` can follow."""
        if count > limit or count * min_bytes > len(self._data) - self.offset:
            raise ValueError(f"{count} {what} are announced")

    def tensor_header(self, name: str) -> _TensorHeader:
        num_dims = self.number("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r:.80} has {num_dims} axes")
        shape = tuple(self.number("Q") for _ in range(num_dims))
        return _TensorHeader(name, shape, self.number("I"), self.number("Q"))

    def _array(self, kind: int, count: int) -> Value:
        if kind != _STRING and kind not in _SCALARS:
            # Arrays of arrays, too: no field that is read has them.
            raise ValueError(f"an array has values of type {kind}")
        size = 8 if kind == _STRING else struct.calcsize(f"<{_SCALARS[kind]}")
        self._num_values += count
        self.check_count(count, size, MAX_VALUES, "values of an array")
        if self._num_values > MAX_VALUES:
            raise ValueError(f"its arrays have more than {MAX_VALUES} values")
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self.bytes(count * size)))


@dataclass(frozen=True, slots=True)
class _TensorHeader:
    """What a header says of a tensor.

    Attributes:
        kind: number of a ``gguf.GGMLQuantizationType``.
        offset: bytes from the beginning of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def map(self, data: np.ndarray, start: int) -> GgufTensor:
        """Return the tensor in the file's bytes, u8[num_bytes], whose data begins at ``start``."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType(self.kind)
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        row_len, *others = self.shape or (1,)
        if min(self.shape, default=1) < 1 or row_len % block_len:
            raise ValueError(f"tensor {self.name!r:.80} has the shape {list(self.shape)}")
        row_bytes = row_len // block_len * block_bytes
        # Python's integers do not overflow.
        begin, num_bytes = start + self.offset, row_bytes * math.prod(others)
        if begin + num_bytes > len(data):
            raise ValueError(f"tensor {self.name!r:.80} ends behind the end of the file")
        stored = data[begin : begin + num_bytes]
        if kind.name in ("F32", "F16"):
            stored = stored.view(np.float32 if kind.name == "F32" else np.float16)
            row_bytes = row_len
        return GgufTensor(kind, self.shape, stored.reshape(*others[::-1], row_bytes))
