"""Reads JSON files of models, which come from strangers: with a limit of their size."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import Json

# The largest configs have some 100 KB, the largest index of shards 10 MB.
MAX_JSON_BYTES = 32 << 20


def read_json(path: Path) -> Json:
    """Return the JSON object of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelLoadError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        # Opening a FIFO would block until a process writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelLoadError(f"{path} is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_JSON_BYTES:
        raise ModelLoadError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON, download it again: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object, download it again")
    return value
