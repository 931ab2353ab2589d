"""Finds the files of a model by its name: a local path, or a name on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.gguf_split import parts_of

_HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
# Longest part of a name that a message shows, in characters.
_MAX_SHOWN_CHARS = 200
_MAX_SHOWN_FOLDERS = 4


def find_local(name: str) -> Path | None:
    """Return the folder or .gguf file of this name; None if no file has this name.

    A folder without a config.json stands for the .gguf model in it, whole or in parts.

    Raises:
        ModelLoadError: the file is no model, the folder has several models, or it cannot be read.
    """
    path = _readable(name)
    if path is None:
        if name.endswith(".gguf"):
            raise ModelLoadError(f"no file {quoted(name)}; check the path")
        return None
    if not path.is_dir():
        if path.suffix != ".gguf":
            raise ModelLoadError(
                f"{quoted(name)} is neither a folder nor a .gguf file; give a folder with a "
                "config.json, or a .gguf file"
            )
        return path
    if (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and not set(files) <= {*parts_of(files[0])}:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(f"{path} has several models; give one of its files: {names}")
    if files:
        return _readable(str(files[0]))
    if inner := _models_below(path):
        names = ", ".join(str(folder) for folder in inner[:_MAX_SHOWN_FOLDERS])
        raise ModelLoadError(f"{path} has no config.json; give the folder that has it: {names}")
    return path


def _models_below(folder: Path) -> list[Path]:
    """Return folders in one without weights that have a config.json, as in the Hub's cache."""
    if any(folder.glob("*.safetensors")):
        return []
    patterns = ("*/config.json", "snapshots/*/config.json")
    return sorted(path.parent for pattern in patterns for path in folder.glob(pattern))


def is_hub_name(name: str) -> bool:
    """True if a name has the form of the Hugging Face Hub, "owner/name"."""
    return _HUB_NAME.fullmatch(name) is not None


def download(name: str, *, weights: bool = True) -> Path:
    """Download a model "owner/name" from the Hugging Face Hub; return its local folder.

    The folder is in the Hub's own cache, which a second call reads.

    Args:
        weights: False downloads only the config and the tokenizer.

    Raises:
        ModelLoadError: the name is not one of the Hub, or the download fails.
    """
    if not is_hub_name(name):
        raise ModelLoadError(
            f"no model {quoted(name)}: give {embedded.NAME!r}, a folder that exists, a .gguf "
            "file, or a Hugging Face Hub name 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = [
            "*.json",
            "*.jinja",
            "tokenizer.model",
            "merges.txt",
            *(["*.safetensors"] * weights),
        ]
        return Path(snapshot_download(name, allow_patterns=patterns))
    # Network, authentication and lookup errors of several libraries.
    except Exception as error:
        raise ModelLoadError(
            f"{name!r} is not a local folder and could not be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check the name and the network, log in with "
            "`hf auth login` if the model is gated, or give a local folder"
        ) from error


def quoted(name: str) -> str:
    """Quote a name for a message: on one line and truncated."""
    return repr(name if len(name) <= _MAX_SHOWN_CHARS else name[:_MAX_SHOWN_CHARS] + "…")


def _readable(name: str) -> Path | None:
    """Return the path of a file or folder that can be opened; None if no file has this name.

    Raises:
        ModelLoadError: the file cannot be opened, or is neither a regular file nor a folder.
    """
    path = Path(name)
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
        elif stat.S_ISDIR(mode):
            os.listdir(path)
            # Listing a folder needs read permission; opening its files needs search permission.
            os.stat(f"{path}/.")
        # Opening a FIFO would block until a process writes to it.
        else:
            raise ModelLoadError(f"{quoted(name)} is neither a folder nor a file")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            target = quoted(os.readlink(path))
            raise ModelLoadError(
                f"{quoted(name)} is a broken link: {target} does not exist"
            ) from None
        return None
    except (OSError, ValueError, RuntimeError) as error:
        # OSError: name too long, no permission, a loop of links. ValueError: a NUL character.
        # RuntimeError: the home folder of an unknown user.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"the model {quoted(name)} cannot be opened: {reason}") from None
    return path
