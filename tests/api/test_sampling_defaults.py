"""Sampling parameters that a model recommends: where they come from, and which are used."""

import json
import logging

import pytest

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.api.sampling_defaults import sampling_defaults
from kvflow_jax.errors import ConfigError, ModelLoadError
from tests.models.families.cases import CONFIGS
from tests.models.tiny_gguf import write as write_gguf

RECOMMENDED = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
    "max_new_tokens": 2048,
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, do_sample=False, eos_token_id=[5], **RECOMMENDED)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write(folder, **fields):
    (folder / "generation_config.json").write_text(json.dumps(fields))


def defaults_of(model, generation_config="auto"):
    return sampling_defaults(LoadConfig(str(model), generation_config=generation_config))


def test_those_of_the_model_are_read_and_logged(folder, caplog):
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        defaults = defaults_of(folder)
    expected = {**RECOMMENDED, "max_tokens": 2048}
    del expected["max_new_tokens"]
    assert defaults == expected
    assert "temperature 0.6, top_k 20" in caplog.text
    assert f"{folder}/generation_config.json" in caplog.text


def test_neutral_ones_ignore_the_file(folder, caplog):
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        assert defaults_of(folder, "kvflow") == {}
    assert "sampling defaults" not in caplog.text


def test_those_of_another_folder_replace_the_models(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, temperature=0.0)
    assert defaults_of(folder, str(other)) == {"temperature": 0.0}
    assert defaults_of("smollm2-135m", str(other)) == {"temperature": 0.0}
    (other / "generation_config.json").unlink()
    with pytest.raises(ModelLoadError, match="--generation-config a folder"):
        defaults_of(folder, str(other))


def test_a_model_without_the_file_has_none(folder):
    (folder / "generation_config.json").unlink()
    assert defaults_of(folder) == {}
    assert defaults_of("qwen3-0.6b") == {}  # a preset of random weights
    assert defaults_of(folder / "no" / "such" / "folder") == {}  # reported by load_model


def test_the_embedded_model_has_those_of_its_card():
    assert defaults_of("smollm2-135m") == {"temperature": 0.2, "top_p": 0.9}


def test_top_k_of_minus_one_is_off(folder):
    write(folder, top_k=-1, top_p=0.5)
    assert defaults_of(folder) == {"top_p": 0.5}


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": "high"}, {"top_k": 2.5}, {"max_new_tokens": 0}]
)
def test_a_value_out_of_range_is_named_with_the_remedy(folder, wrong):
    write(folder, **wrong)
    name = next(iter(wrong)).replace("max_new_tokens", "max_tokens")
    with pytest.raises(ConfigError, match=f"{folder}.*{name}.*--generation-config kvflow"):
        defaults_of(folder)


def test_those_of_a_gguf_file_are_its_metadata(tmp_path):
    fields = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "general.sampling.penalty_repeat": 1.05,
        "general.sampling.mirostat": 0,
    }
    path = write_gguf(tmp_path / "model.gguf", CONFIGS["llama-untied-mha"], fields=fields)
    expected = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    assert defaults_of(path) == expected
    assert defaults_of(tmp_path) == expected  # the one file in it
    assert defaults_of(path, "kvflow") == {}


def test_a_gguf_file_with_a_value_out_of_range_stops_the_start(tmp_path):
    fields = {"general.sampling.temp": -7.0}
    path = write_gguf(tmp_path / "model.gguf", CONFIGS["llama-untied-mha"], fields=fields)
    with pytest.raises(ConfigError, match="temperature"):
        defaults_of(path)
