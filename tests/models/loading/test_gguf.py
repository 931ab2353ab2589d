"""A .gguf file gives the model that a Hugging Face folder of the same weights gives."""

import dataclasses
import shutil

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.errors import ModelLoadError  # noqa: E402 (gguf may be missing)
from kvflow_jax.models.loading import embedded  # noqa: E402
from kvflow_jax.models.loading.checkpoint import CheckpointStore  # noqa: E402
from kvflow_jax.models.loading.gguf import TYPES, GgufFile  # noqa: E402
from kvflow_jax.models.loading.hf_config import read_config  # noqa: E402
from kvflow_jax.models.loading.load import load_model  # noqa: E402
from kvflow_jax.models.loading.weights import NamedWeights  # noqa: E402
from kvflow_jax.models.model import Model  # noqa: E402
from kvflow_jax.models.ops import XLA  # noqa: E402
from tests.models import tiny, tiny_gguf  # noqa: E402
from tests.models.sources import read_all  # noqa: E402

# Of which files do not say all: llama.cpp computes these without windows.
UNSAID = ("mistral-window", "qwen2-late-windows-yarn", "qwen3-moe-unnormalised")
TOKENS = tiny.prompt_tokens(48)


def logits_of(path, **how) -> np.ndarray:
    loaded = load_model(str(path), cache_dir=path.parent, ops=XLA, progress=False, **how)
    return tiny.Sequence(loaded.model, loaded.params, len(TOKENS)).feed(TOKENS)


def weights_of(file):
    model = Model.build(file.config())
    return read_all(model, NamedWeights(model, file.tensors(model.config)))


@pytest.mark.parametrize("name", [name for name in tiny.CONFIGS if name not in UNSAID])
def test_families(name, tmp_path):
    hf = tiny.CONFIGS[name]
    if "query_pre_attn_scalar" in hf:  # which files do not say either
        hf = hf | {"query_pre_attn_scalar": hf["head_dim"]}
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    file, expected = GgufFile(path).config(), read_config(hf)
    if name != "llama3-rope":  # whose scaling the converter has worked out
        # Files hold float32.
        np.testing.assert_allclose(file.rope.factors, expected.rope.factors, rtol=1e-6)
        np.testing.assert_allclose(file.rope.short_factors, expected.rope.short_factors, rtol=1e-6)
        attention_factor = pytest.approx(expected.rope.attention_factor, rel=1e-6)
        assert file.rope.attention_factor == attention_factor
        rope = dataclasses.replace(
            expected.rope,
            factors=file.rope.factors,
            short_factors=file.rope.short_factors,
            attention_factor=file.rope.attention_factor,
        )
        assert file == dataclasses.replace(expected, rope=rope)
    folder = tiny.write_folder(tmp_path / "folder", hf)
    np.testing.assert_allclose(logits_of(path), logits_of(folder), atol=1e-4)


def test_mistral_comes_as_llama(tmp_path):
    hf = tiny.CONFIGS["mistral-window"]
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    folder = tiny.write_folder(tmp_path / "folder", hf | {"sliding_window": None})
    np.testing.assert_allclose(logits_of(path), logits_of(folder), atol=1e-4)


@pytest.mark.parametrize("max_model_len", [32, 33])
def test_longrope_by_the_length_that_is_served(max_model_len, tmp_path):
    hf = tiny.CONFIGS["phi3-longrope"]
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    folder = tiny.write_folder(tmp_path / "folder", hf)
    ours, theirs = (logits_of(each, max_model_len=max_model_len) for each in (path, folder))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (np.abs(ours - logits_of(path)).max() < 1e-4) == (max_model_len > 32)


def test_yarn(tmp_path):
    hf = tiny.CONFIGS["qwen2-late-windows-yarn"] | {"use_sliding_window": False}
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    assert GgufFile(path).config() == read_config(hf)


WIDE = tiny.CONFIGS["untied-mha"] | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
}


def quantised(array: np.ndarray, of_type) -> np.ndarray:
    """A matrix's bytes; of types that gguf only reads, random ones with small scales."""
    try:
        return gguf.quants.quantize(array, of_type)
    except NotImplementedError:
        block, num_bytes = gguf.GGML_QUANT_SIZES[of_type]
        rng = np.random.default_rng(array.size)
        shape = (*array.shape[:-1], array.shape[-1] // block, num_bytes)
        data = rng.integers(0, 256, shape).astype(np.uint8)
        scale = np.array([2e-4], np.float16).view(np.uint8)
        if of_type.name == "Q6_K":
            data[..., -2:] = scale
        else:
            data[..., :2], data[..., 2:4] = scale, scale
        return data.reshape(*array.shape[:-1], -1)


@pytest.mark.parametrize("name", TYPES)
def test_types(name, tmp_path):
    of_type = gguf.GGMLQuantizationType[name]
    tensors = {
        key: (quantised(tensor, of_type), of_type) if tensor.ndim == 2 else tensor
        for key, tensor in tiny_gguf.tensors_of(WIDE).items()
    }
    file = GgufFile(tiny_gguf.write(tmp_path / "model.gguf", WIDE, tensors=tensors))
    stacked = weights_of(file)
    for ours, theirs in (
        (stacked["embed.weight"], "token_embd.weight"),
        (stacked["lm_head.weight"], "output.weight"),
        (stacked["layers.mlp.down_proj.weight"][0].T, "blk.0.ffn_down.weight"),
        (stacked["layers.attention.o_proj.weight"][0].T, "blk.0.attn_output.weight"),
    ):
        np.testing.assert_array_equal(ours, gguf.quants.dequantize(*tensors[theirs]))
        assert np.isfinite(ours).all()
        assert ours.std() > 0.01


def test_experts_are_dequantised_one_by_one(tmp_path):
    hf = tiny.CONFIGS["qwen3-moe"] | {"hidden_size": 64, "moe_intermediate_size": 32}
    tensors = tiny_gguf.tensors_of(hf)
    of_type = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        if "_exps" in name:
            tensors[name] = (gguf.quants.quantize(tensor, of_type), of_type)
    file = GgufFile(tiny_gguf.write(tmp_path / "model.gguf", hf, tensors=tensors))
    down = weights_of(file)["layers.mlp.down_proj.weight"][1]
    expected = gguf.quants.dequantize(*tensors["blk.1.ffn_down_exps.weight"])
    np.testing.assert_array_equal(down.swapaxes(1, 2), expected)


def test_the_embedded_model_is_what_its_file_says(embedded_cache):
    assert GgufFile(embedded.locate()).config() == embedded.CONFIG


def test_a_folder_with_one_file(tmp_path):
    hf = tiny.CONFIGS["tied-gqa"]
    path = tiny_gguf.write(tmp_path / "a" / "model.gguf", hf)
    loaded = load_model(str(path.parent), cache_dir=tmp_path, progress=False)
    assert loaded.config.eos_token_ids == loaded.tokenizer.eos_token_ids == (257,)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the end")) == "the end"
    prompt = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    expected = tiny.byte_level_tokenizer().apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True
    )
    assert prompt == expected["input_ids"]
    tiny_gguf.write(path.with_name("other.gguf"), hf)
    with pytest.raises(ModelLoadError, match=r"give one of its files: model.gguf, other.gguf"):
        load_model(str(path.parent))


def test_ends_of_turns_and_messages(tmp_path):
    fields = {"tokenizer.ggml.eot_token_id": 33, "tokenizer.ggml.eom_token_id": 34}
    path = tiny_gguf.write(tmp_path / "m.gguf", tiny.CONFIGS["tied-gqa"], fields=fields)
    assert GgufFile(path).config().eos_token_ids == (257, 33, 34)


def problems_of(path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(path), cache_dir=path.parent, progress=False)
    return str(caught.value)


def test_no_file(tmp_path):
    assert "there is no file" in problems_of(tmp_path / "model.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(tmp_path, share):
    path = tiny_gguf.write(tmp_path / "model.gguf", tiny.CONFIGS["tied-gqa"])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "is truncated or no GGUF file, download it again" in problems_of(path)


def test_no_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" * 500)
    assert "is truncated or no GGUF file" in problems_of(path)


HF = tiny.CONFIGS["tied-gqa"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"fields": {"general.architecture": "mamba"}},
            "architecture 'mamba' is not supported; supported: llama, qwen2, qwen3, qwen3moe",
        ),
        ({"fields": {"split.count": 3}}, "one of several parts"),
        (
            {"without": ["llama.block_count", "llama.context_length"]},
            "field llama.context_length is missing\n- field llama.block_count is missing",
        ),
        ({"fields": {"llama.attention.head_count_kv": 3}}, "not a multiple of num_key_value_heads"),
        ({"fields": {"llama.attention.head_count_kv": [2, 2, 2]}}, "differs by layer"),
        ({"fields": {"llama.expert_count": 8}}, "a mixture of experts is not supported"),
        ({"fields": {"llama.rope.scaling.type": "dynamic"}}, "'dynamic' is not supported"),
        ({"fields": {"tokenizer.ggml.pre": "viking"}}, "pre-tokenizer 'viking'"),
        ({"fields": {"tokenizer.ggml.model": "rwkv"}}, "of kind 'rwkv', which is not supported"),
        ({"without": ["tokenizer.ggml.merges"]}, "tokenizer.ggml.merges missing"),
    ],
)
def test_what_is_not_served(tmp_path, change, part):
    assert part in problems_of(tiny_gguf.write(tmp_path / "model.gguf", HF, **change))


def test_types_that_are_not_served_are_listed(tmp_path):
    tensors = tiny_gguf.tensors_of(WIDE)
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        of_type = gguf.GGMLQuantizationType.Q2_K
        data = np.zeros((len(tensors[name]), 84), np.uint8)
        tensors[name] = (data, of_type)
    message = problems_of(tiny_gguf.write(tmp_path / "model.gguf", WIDE, tensors=tensors))
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        assert f"{name} is of type Q2_K, which is not supported; supported: F32" in message


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    tensors = tiny_gguf.tensors_of(HF)
    del tensors["blk.1.ffn_up.weight"]
    tensors["blk.1.attn_sinks.weight"] = np.zeros(4, np.float32)
    message = problems_of(tiny_gguf.write(tmp_path / "model.gguf", HF, tensors=tensors))
    assert "missing tensor model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected tensor model.layers.1.attn_sinks.weight [4]" in message


def test_a_second_start_dequantises_nothing(tmp_path, monkeypatch):
    path = tiny_gguf.write(tmp_path / "model.gguf", tiny.CONFIGS["tied-gqa"])
    first = load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    monkeypatch.setattr(GgufFile, "tensors", None)
    second = load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    for name, weight in first.params.items():
        np.testing.assert_array_equal(second.params[name], weight)


def test_random_weights_of_a_file(tmp_path, monkeypatch):
    """Its shape and its tokenizer, whatever its tensors hold."""
    path = tiny_gguf.write(tmp_path / "model.gguf", tiny.CONFIGS["gemma3"])
    loaded = load_model(str(path), cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(GgufFile, "tensors", None)
    for name in (path, path.parent):
        made_up = load_model(str(name), cache_dir=tmp_path / "cache", random_weights=True)
        assert made_up.config == loaded.config
        assert made_up.tokenizer.decode(made_up.tokenizer.encode("the end")) == "the end"
        assert {n: w.shape for n, w in made_up.params.items()} == {
            n: w.shape for n, w in loaded.params.items()
        }


def test_what_has_no_room_is_not_kept(tmp_path, monkeypatch, caplog):
    path = tiny_gguf.write(tmp_path / "model.gguf", tiny.CONFIGS["tied-gqa"])
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    assert "too little room" in caplog.text
    assert not list((tmp_path / "models").iterdir())


def test_a_cache_folder_that_cannot_be_written_costs_the_next_start_only(tmp_path, caplog):
    path = tiny_gguf.write(tmp_path / "model.gguf", tiny.CONFIGS["tied-gqa"])
    (tmp_path / "file").write_text("no folder")
    load_model(str(path), cache_dir=tmp_path / "file", ops=XLA, progress=False)
    assert "converted weights are not kept" in caplog.text


def test_the_embedded_models_file_by_its_path_is_another_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    keys = embedded.SHA256, "embedded-" + embedded.SHA256
    assert len({store.path(key, "float32") for key in keys}) == 2
