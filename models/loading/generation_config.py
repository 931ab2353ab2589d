"""Reads the generation_config.json of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import Json

GENERATION_CONFIG_FILE = "generation_config.json"


def read_generation_config(folder: Path) -> Json:
    """Return the fields of the file that are not null.

    Raises:
        ModelLoadError: the file is missing, or is no JSON object.
    """
    path = folder / GENERATION_CONFIG_FILE
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}; give --generation-config a folder that has "
            "this file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON, download it again: {error}") from error
    if not isinstance(fields, dict):
        raise ModelLoadError(f"{path} is not a JSON object, download it again")
    return {name: value for name, value in fields.items() if value is not None}
