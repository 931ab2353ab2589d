"""Reads the generation_config.json of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import Json
from kvflow_jax.models.json_file import read_json

GENERATION_CONFIG_FILE = "generation_config.json"


def read_generation_config(folder: Path) -> Json:
    """Return the fields of the file that are not null.

    Raises:
        ModelLoadError: the file is missing, or is no JSON object.
    """
    path = folder / GENERATION_CONFIG_FILE
    try:
        fields = read_json(path)
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}; give --generation-config a folder that has "
            "this file"
        ) from error
    return {name: value for name, value in fields.items() if value is not None}
