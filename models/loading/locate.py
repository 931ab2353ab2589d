"""Where a model's files are, by its name."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import embedded

_HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_SHOWN_CHARS = 200


def find_local(name: str) -> Path | None:
    """The folder of this name, or the .gguf file; None where there is nothing of this name.

    Raises:
        ModelLoadError: it holds no model, or cannot be read.
    """
    path = _readable(name)
    if path is None:
        if name.endswith(".gguf"):
            raise ModelLoadError(f"there is no file {quoted(name)}")
        return None
    if not path.is_dir():
        if path.suffix != ".gguf":
            raise ModelLoadError(f"{quoted(name)} is neither a folder nor a .gguf file")
        return path
    if (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(f"{path} holds several models, give one of its files: {names}")
    return _readable(str(files[0])) if files else path


def is_hub_name(name: str) -> bool:
    """Whether a name can be one of the Hugging Face Hub's, "owner/name"."""
    return _HUB_NAME.fullmatch(name) is not None


def download(name: str, *, weights: bool = True) -> Path:
    """A model of the Hugging Face Hub, by "owner/name"; kept in the Hub's own cache.

    Raises:
        ModelLoadError: there is none, or it cannot be had.
    """
    if not is_hub_name(name):
        raise ModelLoadError(
            f"no model {quoted(name)}: give {embedded.NAME!r}, a folder that exists, "
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


def quoted(name: str) -> str:
    """A name as a message shows it: on one line, which it does not fill."""
    return repr(name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…")


def _readable(name: str) -> Path | None:
    """A regular file or a folder that can be opened; None where there is nothing of this name.

    Raises:
        ModelLoadError: there is something, and it cannot be opened or is neither.
    """
    try:
        path = Path(name).expanduser()
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
        elif stat.S_ISDIR(mode):
            os.listdir(path)
            os.stat(f"{path}/.")  # to list a folder is not yet to open what is in it
        else:  # to open a FIFO would wait for whoever writes to it
            raise ModelLoadError(f"{quoted(name)} is neither a folder nor a file")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            where = quoted(os.readlink(path))
            raise ModelLoadError(
                f"{quoted(name)} is a link to {where}, which is not there"
            ) from None
        return None
    except (OSError, ValueError, RuntimeError) as error:
        # Too long, forbidden, a loop of links; a NUL character; the home of nobody.
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"the model {quoted(name)} cannot be opened: {why}") from None
    return path
