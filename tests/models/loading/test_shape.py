"""The config and the tokenizer of a model are read without its weights."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.loading.shape import read_gguf_shape, read_shape
from tests.models import tiny


def test_a_preset_has_no_tokenizer():
    assert read_shape("llama-3.1-8b") == (PRESETS["llama-3.1-8b"], None)


def test_a_folder_may_have_no_tokenizer(tmp_path):
    config, tokenizer = read_shape(str(tiny.write_folder(tmp_path, tokenizer=False)))
    assert tokenizer is None
    assert config.vocab_size == tiny.VOCAB_SIZE


def test_the_weights_of_a_hub_name_are_not_downloaded(folder, monkeypatch):
    def download(name, allow_patterns):
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(folder)

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read_shape("owner/model")[1] is not None


def test_a_config_is_needed(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"missing file .*config\.json"):
        read_shape(str(folder))


def test_an_unknown_shape_is_answered_with_the_known():
    with pytest.raises(ModelLoadError, match=r"give one of smollm2-135m, llama-3.2-1b, llama"):
        read_shape("gpt-5")


def test_a_gguf_file_has_both(tmp_path):
    gguf = pytest.importorskip("kvflow_jax.models.loading.gguf")
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    hf = tiny_gguf.CONFIGS["llama"]
    config, tokenizer = read_gguf_shape(gguf.GgufFile(tiny_gguf.write(tmp_path / "m.gguf", hf)))
    assert config.eos_token_ids == tokenizer.eos_token_ids == (257,)
