"""Reads the tokenizer of a Hugging Face folder, whatever files it is made of."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.json_file import read_json
from kvflow_jax.models.rust_panics import panics_as_errors
from kvflow_jax.models.tokenizer_checks import (
    check_file,
    check_sentencepiece,
    check_settings,
    check_tekken,
    check_tiktoken,
    is_sentencepiece,
)

JSON, SENTENCEPIECE, TEKKEN, VOCAB, MERGES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
)
# Forms of a tokenizer: the files that each needs. Of several the first is read.
FORMS = ((JSON,), (TEKKEN,), (SENTENCEPIECE,), (VOCAB, MERGES))
MAX_TOKENIZER_BYTES = 256 << 20  # the largest, Gemma 3's, has 33 MB
MAX_MODEL_BYTES = 32 << 20  # of a tokenizer.model or tekken.json; the largest has 19 MB

# Longest part of other libraries' errors that a message shows, in characters.
_MAX_SHOWN = 300


def has_tokenizer(folder: Path) -> bool:
    """True if a folder has all files of one form of a tokenizer."""
    return _form(folder) is not None


def read_tokenizer(folder: Path) -> Any:
    """Return the PreTrainedTokenizerFast of a folder.

    Raises:
        ModelLoadError: naming the files or the package that are missing, or what cannot be read.
    """
    form = _form(folder)
    if form is None:
        raise ModelLoadError(_missing(folder))
    _check(folder, form)
    try:
        with panics_as_errors():
            hf = _read(folder, form)
    except ModelLoadError:
        raise
    except Exception as error:  # its readers raise errors of many libraries
        raise ModelLoadError(
            f"the tokenizer in {folder} ({', '.join(form)}, tokenizer_config.json) cannot be read, "
            f"download it again: {_in_one_line(error)}"
        ) from error
    if hf.chat_template is None:
        hf.chat_template = _separate_template(folder)
    if not getattr(hf, "is_fast", False):
        raise ModelLoadError(f"the tokenizer in {folder} has no fast form (tokenizer.json)")
    return hf


def _form(folder: Path) -> tuple[str, ...] | None:
    # A broken link is there: its error says more than that there is no tokenizer.
    forms = (form for form in FORMS if all(os.path.lexists(folder / name) for name in form))
    return next(forms, None)


def _missing(folder: Path) -> str:
    for name, other in ((VOCAB, MERGES), (MERGES, VOCAB)):
        if (folder / name).exists():
            return f"{folder} has {name}, and neither {other} nor tokenizer.json; download them"
    return (
        f"{folder} has no tokenizer.json; download it, or save one there with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _read(folder: Path, form: tuple[str, ...]) -> Any:
    from kvflow_jax.models.quiet_imports import transformers

    # Not AutoTokenizer: its classes build pre-tokenizer, normalizer and decoder anew, and the model
    # was trained with those of the file. So it is with the settings in a tokenizer.model.
    if form != (VOCAB, MERGES):
        hf = transformers().PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return hf if form == (JSON,) else _with_roles(hf)
    try:
        return transformers().AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            # Unset, it asks the terminal.
            trust_remote_code=False,
        )
    except ValueError as error:
        raise ModelLoadError(
            f"{folder} has {' and '.join(form)}, which transformers cannot read for this model: "
            "tokenizer_config.json must name a tokenizer_class that reads them (GPT2Tokenizer, "
            f"Qwen2Tokenizer), or download tokenizer.json ({_in_one_line(error)})"
        ) from error


def _with_roles(hf: Any) -> Any:
    """Return a tokenizer with its BOS and EOS, which tekken.json and a tokenizer.model do not name.

    Text begins with the BOS unless tokenizer_config.json says otherwise, as in those libraries.
    """
    tokens = hf.get_vocab()
    for role, token in (("bos_token", "<s>"), ("eos_token", "</s>")):
        if getattr(hf, role) is None and token in tokens:
            setattr(hf, role, token)
    if hf.init_kwargs.get("add_bos_token") is None and hf.bos_token is not None:
        hf.add_bos_token = True
    return hf


def _check(folder: Path, form: tuple[str, ...]) -> None:
    """Raise ModelLoadError for files that other libraries would read at length, or not at all."""
    limit = MAX_MODEL_BYTES if form in ((TEKKEN,), (SENTENCEPIECE,)) else MAX_TOKENIZER_BYTES
    for name in form:
        check_file(folder / name, limit)
    check_settings(folder)
    path = folder / form[0]
    if form == (TEKKEN,):
        check_tekken(path)
    elif form == (SENTENCEPIECE,) and is_sentencepiece(path):
        _check_packages(path, {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"})
        check_sentencepiece(path)
    elif form == (SENTENCEPIECE,):
        check_tiktoken(path)
        _check_packages(path, {"tiktoken": "tiktoken"})


def _check_packages(path: Path, needed: Mapping[str, str]) -> None:
    """Raise ModelLoadError unless the modules that read a file are installed.

    Args:
        needed: module -> package.
    """
    if missing := [package for name, package in needed.items() if not _is_installed(name)]:
        raise ModelLoadError(
            f"{path.parent} has no tokenizer.json, and reading its {path.name} needs "
            f"{' and '.join(missing)}; install with: pip install {' '.join(missing)}, "
            "or download tokenizer.json"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that the module is in
        return False


def _separate_template(folder: Path) -> str | None:
    """Return the chat template of the file that multimodal models have, None if there is none."""
    path = folder / "chat_template.json"
    template = read_json(path).get("chat_template") if path.exists() else None
    return template if isinstance(template, str) else None


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    # "'rank'" alone says nothing.
    is_named = type(error) is not Exception
    return f"{type(error).__name__}: {shown}" if is_named else shown
