"""Reads the tokenizer of a Hugging Face folder, whatever files it is made of."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.json_file import MAX_JSON_BYTES
from kvflow_jax.models.rust_panics import panics_as_errors

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
_VOCABULARIES = tuple(name for form in FORMS for name in form)
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
)


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
    _check_sizes(folder)
    try:
        with panics_as_errors():
            hf = _read(folder, form)
    except ModelLoadError:
        raise
    except Exception as error:  # its readers raise errors of many libraries
        raise ModelLoadError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not getattr(hf, "is_fast", False):
        raise ModelLoadError(f"the tokenizer in {folder} has no fast form (tokenizer.json)")
    return hf


def _form(folder: Path) -> tuple[str, ...] | None:
    forms = (form for form in FORMS if all((folder / name).exists() for name in form))
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
    if form == (SENTENCEPIECE,):
        _check_packages(folder)
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
            f"Qwen2Tokenizer), or download tokenizer.json ({error})"
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


def _check_packages(folder: Path) -> None:
    """Raise ModelLoadError unless the packages that read a tokenizer.model are installed."""
    with (folder / SENTENCEPIECE).open("rb") as file:
        # The tag of its first field, a piece. Files of tiktoken begin with base64.
        is_sentencepiece = file.read(1) == b"\n"
    # module -> package
    needed = (
        {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
        if is_sentencepiece
        else {"tiktoken": "tiktoken"}
    )
    if missing := [package for name, package in needed.items() if not _is_installed(name)]:
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, and reading its {SENTENCEPIECE} needs "
            f"{' and '.join(missing)}; install with: pip install {' '.join(missing)}, "
            "or download tokenizer.json"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that the module is in
        return False


def _check_sizes(folder: Path) -> None:
    """Raise ModelLoadError if a file that transformers parses is large."""
    for name in (*_VOCABULARIES, *_SETTINGS):
        path = folder / name
        limit = MAX_TOKENIZER_BYTES if name in _VOCABULARIES else MAX_JSON_BYTES
        if path.exists() and (size := path.stat().st_size) > limit:
            raise ModelLoadError(f"{path} has {size} bytes, the limit is {limit}")
