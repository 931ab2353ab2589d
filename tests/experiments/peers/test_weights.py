"""Weights in the peers' formats have the values of the file that they come from."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.peers import weights
from experiments.peers.weights import PeerWeights, write_gguf, write_hf_folder
from kvflow_jax.models.families.base import TINY_LLAMA
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import WEIGHTS_FILE

CONFIG = read_config({**TINY_LLAMA, "num_hidden_layers": 1})
EMBEDDING = "token_embd.weight"


@pytest.fixture
def source(tmp_path):
    """A .gguf file with a matrix and a vector."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tensor(EMBEDDING, rng.standard_normal((4, 64)).astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "source.gguf"


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("F16", 0.0), ("Q8_0", 0.02)])
def test_a_copy_has_the_fields_and_the_values(source, tmp_path, kind, tolerance):
    write_gguf(tmp_path / "copy.gguf", source, kind)
    before, after = (gguf.GGUFReader(path) for path in (source, tmp_path / "copy.gguf"))
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    old, new = before.tensors[0], after.tensors[0]
    assert new.tensor_type.name == kind
    assert after.tensors[1].tensor_type.name == "F32"
    values = gguf.dequantize(new.data, new.tensor_type)
    assert np.abs(values - old.data.astype(np.float32)).max() <= tolerance


class FakeTensors:
    headers = (("model.norm.weight", (3,), "float32"),)

    def read(self, name, index):
        return np.arange(5, dtype=np.float32)[index[0]]


class FakeFile:
    def __init__(self, path):
        self.path = path

    def tensors(self, model):
        return FakeTensors()

    def tokenizer(self):
        class FakeTokenizer:
            def save_pretrained(self, folder):
                (folder / "tokenizer.json").touch()

        return FakeTokenizer()


def test_a_folder_is_read_back_as_the_model_it_was(source, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "GgufFile", FakeFile)
    write_hf_folder(tmp_path / "hf", source, CONFIG)
    assert load_file(tmp_path / "hf" / WEIGHTS_FILE)["model.norm.weight"].tolist() == [0, 1, 2]
    written = read_config(json.loads((tmp_path / "hf" / "config.json").read_text()))
    assert (written.num_layers, written.rope, written.family) == (1, CONFIG.rope, "llama")


def test_the_folder_is_written_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "GgufFile", FakeFile)
    monkeypatch.setattr(weights.embedded, "locate", lambda: source)
    folder = PeerWeights.of(tmp_path)
    folder.ensure()
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        *("F16.gguf", "F32.gguf", "Q8_0.gguf"),
        "hf",
    ]
    monkeypatch.setattr(weights.embedded, "locate", None)
    folder.ensure()
