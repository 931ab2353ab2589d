"""Reads a model in several .gguf files, as llama.cpp's ``llama-gguf-split`` writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.gguf_header import GgufHeader, GgufTensor, Value, read_header

MAX_PARTS = 1000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_COUNT, _NUMBER = "split.count", "split.no"


def parts_of(path: Path) -> list[Path]:
    """Return the files of the model that a file is a part of, in order; it alone if it is whole.

    The names tell; the files need not exist.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not 0 < int(match["count"]) <= MAX_PARTS:
        return [path]
    count = int(match["count"])
    return [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]


def read_parts(path: Path) -> GgufHeader:
    """Return the fields of the first part and the tensors of all parts.

    Args:
        path: of any part, or of a whole file.

    Raises:
        ModelLoadError: a part is missing, or is not the one that its name says.
        ValueError, struct.error, OSError: see ``read_header``.
    """
    paths = parts_of(path)
    if missing := [part.name for part in paths if not part.exists()]:
        raise ModelLoadError(
            f"{path} is part of a split model of which {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing ({len(missing)} of {len(paths)} "
            "files); download them into the same folder"
        )
    fields: Mapping[str, Value] = {}
    tensors: dict[str, GgufTensor] = {}
    for index, part in enumerate(paths):
        header = read_header(part)
        count = header.fields.get(_COUNT, 0)
        # llama-gguf-split does not write these fields for a model that stays in one file.
        if (count or 1) != len(paths) or header.fields.get(_NUMBER, 0) != index:
            raise ModelLoadError(
                f"{part} is one of {count} files of a split model, and its name does not say "
                "which: name them NAME-00001-of-0000N.gguf as llama-gguf-split does, or join them "
                "with llama-gguf-split --merge"
            )
        if repeated := header.tensors.keys() & tensors.keys():
            raise ModelLoadError(f"{part}: another part has tensor {min(repeated)!r:.80}, too")
        fields = fields or header.fields
        tensors |= header.tensors
    return GgufHeader(fields, tensors)
