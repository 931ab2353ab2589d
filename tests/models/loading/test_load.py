import json

import jax
import numpy as np
import pytest

from kvflow_jax.errors import ConfigError, ModelLoadError
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.ops import XLA
from tests.models import tiny
from tests.models.families.cases import CONFIGS

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_embedded_model_answers(smollm2):
    """Greedy decoding from the chat template to the end token, as in the README."""
    prompt = smollm2.tokenizer.apply_chat_template(QUESTION)
    sequence = tiny.Sequence(smollm2.model, smollm2.params, 128)
    token = int(sequence.feed(prompt, 64)[-1].argmax())
    output = []
    while token not in smollm2.config.eos_token_ids:
        output.append(token)
        token = int(sequence.feed([token])[0].argmax())
    assert smollm2.tokenizer.decode(output) == "The capital of France is Paris."


def test_a_second_start_does_not_read_the_embedded_gguf(smollm2, embedded_cache, monkeypatch):
    def forbidden():
        raise AssertionError("the GGUF file was located")

    monkeypatch.setattr(embedded, "locate", forbidden)
    again = load_model(embedded.NAME, cache_dir=embedded_cache, ops=XLA)
    assert again.params.keys() == smollm2.params.keys()
    for name, weight in smollm2.params.items():
        np.testing.assert_array_equal(again.params[name], weight)
    prompt = smollm2.tokenizer.apply_chat_template(QUESTION)
    assert again.tokenizer.apply_chat_template(QUESTION) == prompt


def test_a_folder_is_loaded_with_its_tokenizer(folder):
    loaded = load_model(str(folder), dtype="float32", progress=False)
    assert loaded.config.num_layers == 3
    assert loaded.config.eos_token_ids == loaded.tokenizer.eos_token_ids == (257,)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the end")) == "the end"


def test_progress_is_shown_only_on_request(folder, capfd):
    load_model(str(folder), dtype="float32", progress=False)
    assert "weights" not in capfd.readouterr().err
    load_model(str(folder), dtype="float32", progress=True)
    assert "100%" in capfd.readouterr().err


def test_eos_ids_come_from_all_files(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 33]}))
    assert load_model(str(folder), dtype="float32", progress=False).config.eos_token_ids == (
        257,
        33,
    )


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json"])
def test_all_missing_files_are_named(folder, lost):
    (folder / lost).unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    assert lost in str(caught.value)
    assert "missing file model.safetensors" in str(caught.value)


def test_a_missing_tokenizer_does_not_hide_problems_of_the_weights(tmp_path):
    weights = tiny.hf_weights(CONFIGS["llama"])
    del weights["model.norm.weight"]
    folder = tiny.write_folder(tmp_path / "model", weights=weights, tokenizer=False)
    with pytest.raises(ModelLoadError, match=r"(?s)no tokenizer\.json.*missing tensor model\.n"):
        load_model(str(folder))


def test_unreadable_json_is_reported(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="is not JSON, download it again") as caught:
        load_model(str(folder))
    assert str(caught.value).count("config.json is not JSON") == 1
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer in .* cannot be read"):
        load_model(str(folder))


def test_an_unknown_name_is_answered_with_what_to_give():
    with pytest.raises(
        ModelLoadError,
        match=r"no model 'smollm3': give 'smollm2-135m', a folder that exists, a .gguf",
    ):
        load_model("smollm3")


def test_a_failed_download_is_reported_with_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelLoadError, match=r"no route to host.*check the name and the network"):
        load_model("owner/model")


def test_a_hub_name_is_downloaded_and_loaded(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kwargs: str(folder))
    assert load_model("owner/model", dtype="float32", progress=False).name == "owner/model"


def test_random_weights_of_a_folder_need_only_its_config(folder):
    (folder / "model.safetensors").unlink()
    loaded = load_model(str(folder), dtype="float32", random_weights=True)
    assert loaded.tokenizer is not None
    (folder / "tokenizer.json").unlink()
    again = load_model(str(folder), dtype="float32", random_weights=True)
    assert again.tokenizer is None
    for name, weight in loaded.params.items():
        assert (weight.shape, weight.dtype) == (
            loaded.model.specs[name].shape,
            loaded.model.specs[name].dtype,
        )
        np.testing.assert_array_equal(weight, again.params[name])


def test_a_jitted_step_does_not_depend_on_the_weights(folder):
    """They are arguments: a second call with other arrays compiles nothing."""
    loaded = load_model(str(folder), dtype="float32", progress=False)
    sequence = tiny.Sequence(loaded.model, loaded.params, 32)
    sequence.feed([1])
    sequence.params = {name: jax.device_put(weight) for name, weight in loaded.params.items()}
    with jax.no_tracing(True):
        sequence.feed([1])


def test_tensor_parallel_must_be_at_least_1(folder):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        load_model(str(folder), tensor_parallel=0)


def test_fused_experts_are_named_in_one_line(tmp_path):
    weights = tiny.hf_weights(CONFIGS["qwen3-moe"])
    weights = {name: weight for name, weight in weights.items() if ".experts." not in name}
    weights["model.layers.0.mlp.experts.gate_up_proj"] = np.zeros((2, 3, 4), np.float32)
    folder = tiny.write_folder(tmp_path / "model", CONFIGS["qwen3-moe"], weights=weights)
    with pytest.raises(
        ModelLoadError, match="has the matrices of all experts of a layer"
    ) as caught:
        load_model(str(folder))
    assert "missing tensor" not in str(caught.value)
