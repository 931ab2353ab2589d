"""Reads JSON files of models, which come from strangers: with a limit of their size."""

from __future__ import annotations

import json
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import Json
from kvflow_jax.models.regular_file import read_regular_file

# The largest configs have some 100 KB, the largest index of shards 10 MB.
MAX_JSON_BYTES = 32 << 20


def read_json(path: Path) -> Json:
    """Return the JSON object of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelLoadError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        data = read_regular_file(path, MAX_JSON_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON, download it again: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object, download it again")
    return value
