"""Which weights were loaded: processes that share a model must have the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096


def version_of(files: Iterable[Path]) -> str:
    """A digest of weight files: of their names, sizes, and samples spread over their content.

    To read all would take as long as to load them. Another revision differs nearly everywhere.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size}\n".encode())
            for i in range(_NUM_SAMPLES):  # the first bytes and the last among them
                file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
