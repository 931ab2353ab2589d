"""Models of the Hugging Face Hub, by "owner/name"."""

from __future__ import annotations

from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models import embedded


def is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def download(name: str, *, weights: bool = True) -> Path:
    """A model of the Hugging Face Hub, by "owner/name"; kept in the Hub's own cache."""
    if not is_hub_name(name):
        raise ModelLoadError(
            f"no model {name!r}: give {embedded.NAME!r}, a folder that exists, "
            "or a Hugging Face Hub name 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.jinja", "tokenizer.model", *(["*.safetensors"] * weights)]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # network, authentication and lookup errors of several libraries
        raise ModelLoadError(
            f"{name!r} is no local folder and could not be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check the name and the network, log in with "
            "`hf auth login` if it is gated, or give a folder"
        ) from error
