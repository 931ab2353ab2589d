"""Small Hugging Face folders of every family."""

import json

import pytest
from safetensors.numpy import load_file

from experiments import make_folder
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import header_problems
from kvflow_jax.models.model import Model


@pytest.mark.parametrize("family", make_folder.FAMILIES)
def test_every_family_has_a_config_that_is_served_and_its_tensors(family):
    hf = make_folder.FAMILIES[family].tiny
    model = Model.build(read_config(hf))
    weights = make_folder.hf_weights(hf)
    headers = [(name, tensor.shape, tensor.dtype.name) for name, tensor in weights.items()]
    assert header_problems(model, headers) == []


def test_a_command_writes_a_folder_and_refuses_one_that_is_not_empty(command, tmp_path):
    folder = tmp_path / "model"
    status, out, _ = command(make_folder, "llama", folder, "--shards", 2)
    assert status == 0
    assert "LlamaForCausalLM" in out
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == 2
    for file in set(index.values()):
        assert set(load_file(folder / file)) == {name for name in index if index[name] == file}
    with pytest.raises(SystemExit, match="2"):
        command(make_folder, "llama", folder)


def test_a_seed_gives_the_same_weights():
    one, same, other = (
        make_folder.hf_weights(make_folder.TINY_LLAMA, seed)["model.embed_tokens.weight"]
        for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert not (one == other).all()


def test_a_temporary_folder_is_removed():
    with make_folder.temporary_folder() as folder:
        assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
        assert (folder / "tokenizer.json").exists()
    assert not folder.exists()
