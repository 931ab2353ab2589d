"""Shape of a model without its weights: the config, and the tokenizer if there is one."""

from __future__ import annotations

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.hf_config import read_config_file
from kvflow_jax.models.loading.locate import download, find_local, is_hub_name, quoted
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.models.tokenizer_files import has_tokenizer


def read_shape(name_or_path: str) -> tuple[ModelConfig, Tokenizer | None]:
    """Return the config and the tokenizer of a preset, a local model or a Hub model.

    Raises:
        ModelLoadError: there is no such model, or its files cannot be read.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path], None
    path = find_local(name_or_path)
    if path is None and not is_hub_name(name_or_path):
        raise ModelLoadError(
            f"no model {quoted(name_or_path)} for random weights; give one of {', '.join(PRESETS)}"
            ", a folder with a config.json, a .gguf file, or a Hugging Face Hub name 'owner/name'"
        )
    folder = path or download(name_or_path, weights=False)
    if not folder.is_dir():
        return read_gguf_shape(GgufFile(folder))
    config = read_config_file(folder)
    if not has_tokenizer(folder):
        return config, None
    tokenizer = Tokenizer.from_folder(folder)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer


def read_gguf_shape(file: GgufFile) -> tuple[ModelConfig, Tokenizer]:
    """Return the config and the tokenizer of a .gguf file.

    Raises:
        ModelLoadError: the file lacks a field, or has an unsupported one.
    """
    config = file.config()
    tokenizer = Tokenizer(file.tokenizer(), config.eos_token_ids)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer
