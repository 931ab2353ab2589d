"""Digests weight files: processes that share a model must load the same weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096


def weights_digest(files: Iterable[Path]) -> str:
    """Return a digest of the names, the sizes and 64 samples of the content of each file.

    Reading all content would take as long as loading it. Another revision of a model differs in
    nearly every sample.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size}\n".encode())
            # Evenly spaced samples, the first and the last bytes among them.
            for i in range(_NUM_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
