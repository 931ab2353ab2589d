"""Files of llama.cpp's format: what is read, cached and rejected. ``test_families`` has logits."""

import shutil
from functools import partial

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.errors import ModelLoadError  # noqa: E402 (gguf may be missing)
from kvflow_jax.models.families import FAMILIES  # noqa: E402
from kvflow_jax.models.loading import embedded  # noqa: E402
from kvflow_jax.models.loading.checkpoint import CheckpointStore  # noqa: E402
from kvflow_jax.models.loading.gguf import GgufFile  # noqa: E402
from kvflow_jax.models.loading.load import load_model  # noqa: E402
from kvflow_jax.models.ops import XLA  # noqa: E402
from tests.models import tiny, tiny_gguf  # noqa: E402
from tests.support.native import native_ops  # noqa: E402

HF = FAMILIES["llama"].tiny


def test_a_folder_stands_for_its_only_file(tmp_path):
    path = tiny_gguf.write(tmp_path / "a" / "model.gguf", HF)
    loaded = load_model(str(path.parent), dtype="float32", cache_dir=tmp_path, progress=False)
    assert loaded.config.eos_token_ids == loaded.tokenizer.eos_token_ids == (257,)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the end")) == "the end"
    prompt = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    expected = tiny.byte_level_tokenizer().apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True
    )
    assert prompt == expected["input_ids"]
    tiny_gguf.write(path.with_name("other.gguf"), HF)
    with pytest.raises(ModelLoadError, match=r"give one of its files: model.gguf, other.gguf"):
        load_model(str(path.parent))


def test_ends_of_turns_and_messages_end_a_generation(tmp_path):
    fields = {"tokenizer.ggml.eot_token_id": 33, "tokenizer.ggml.eom_token_id": 34}
    path = tiny_gguf.write(tmp_path / "m.gguf", HF, fields=fields)
    assert GgufFile(path).config().eos_token_ids == (257, 33, 34)


@pytest.mark.parametrize(
    ("bias", "tensor"),
    [("qkv_bias", "attn_q"), ("out_bias", "attn_output"), ("mlp_bias", "ffn_gate")],
)
def test_biases_are_those_that_the_file_has(tmp_path, bias, tensor):
    tensors = tiny_gguf.tensors_of(HF) | {f"blk.0.{tensor}.bias": np.zeros(64, np.float32)}
    config = GgufFile(tiny_gguf.write(tmp_path / "m.gguf", HF, tensors=tensors)).config()
    assert [name for name in ("qkv_bias", "out_bias", "mlp_bias") if getattr(config, name)] == [
        bias
    ]


def problems_of(path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(path), cache_dir=path.parent, progress=False)
    return str(caught.value)


def test_a_missing_file_is_reported(tmp_path):
    assert "no file" in problems_of(tmp_path / "model.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_reported(tmp_path, share):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "is truncated or not a GGUF file; download it again" in problems_of(path)


def test_a_file_of_another_format_is_reported(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" * 500)
    assert "is truncated or not a GGUF file" in problems_of(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"fields": {"general.architecture": "mamba"}},
            "architecture 'mamba' is not supported; supported: llama, qwen2, qwen3, qwen3moe",
        ),
        ({"fields": {"split.count": 3}}, "is one of 3 files of a split model"),
        (
            {"without": ["llama.block_count", "llama.context_length"]},
            "missing field llama.context_length\n- missing field llama.block_count",
        ),
        ({"fields": {"llama.attention.head_count_kv": 3}}, "not a multiple of num_key_value_heads"),
        (
            {"fields": {"llama.attention.head_count_kv": [2, 2, 2]}},
            "with one value per layer is not supported",
        ),
        ({"fields": {"llama.expert_count": 8}}, "a mixture of experts is not supported"),
        ({"fields": {"llama.rope.scaling.type": "dynamic"}}, "'dynamic' is not supported"),
        ({"fields": {"tokenizer.ggml.pre": "viking"}}, "pre-tokenizer 'viking'"),
        ({"fields": {"tokenizer.ggml.model": "rwkv"}}, "has kind 'rwkv', which is not supported"),
        ({"without": ["tokenizer.ggml.merges"]}, "missing tokenizer.ggml.merges"),
    ],
)
def test_unsupported_files_are_rejected_with_the_reason(tmp_path, change, part):
    assert part in problems_of(tiny_gguf.write(tmp_path / "model.gguf", HF, **change))


def test_tensors_of_unsupported_types_are_listed(tmp_path):
    tensors = tiny_gguf.tensors_of(tiny_gguf.WIDE)
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        tensors[name] = tensors[name].astype(np.int8)
    message = problems_of(tiny_gguf.write(tmp_path / "model.gguf", tiny_gguf.WIDE, tensors=tensors))
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        assert f"tensor {name} has type I8, which is not supported; supported: F32" in message


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    tensors = tiny_gguf.tensors_of(HF)
    del tensors["blk.1.ffn_up.weight"]
    tensors["blk.1.attn_sinks.weight"] = np.zeros(4, np.float32)
    message = problems_of(tiny_gguf.write(tmp_path / "model.gguf", HF, tensors=tensors))
    assert "missing tensor model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected tensor blk.1.attn_sinks.weight [4]" in message


def quantised_file(path, kinds):
    """Write a file with matrices of types: those of tables, of ``ffn_down`` and of all others."""
    tensors = {}
    for name, tensor in tiny_gguf.tensors_of(tiny_gguf.WIDE).items():
        is_table = name in ("token_embd.weight", "output.weight")
        kind = kinds["tables" if is_table else "down" if "ffn_down" in name else "others"]
        kind = gguf.GGMLQuantizationType[kind]
        tensors[name] = (tiny_gguf.quantised(tensor, kind), kind) if tensor.ndim == 2 else tensor
    return tiny_gguf.write(path, tiny_gguf.WIDE, tensors=tensors)


@pytest.mark.parametrize(
    ("tables", "down", "others", "expected"),
    [
        ("Q6_K", "Q4_K", "Q4_K", "int4"),
        ("Q8_0", "Q4_1", "Q4_0", "int4"),
        ("Q6_K", "Q6_K", "Q4_K", "int8"),
        ("Q8_0", "Q8_0", "Q8_0", "int8"),
        ("F16", "Q4_0", "Q4_0", "none"),
        ("Q8_0", "BF16", "Q8_0", "none"),
        ("Q6_K", "TQ2_0", "TQ1_0", "int4"),
        ("Q6_K", "Q3_K", "Q2_K", "int8"),
        ("Q8_0", "IQ4_NL", "IQ2_XXS", "int8"),
    ],
)
def test_a_file_has_as_many_bits_as_its_widest_matrix(tmp_path, tables, down, others, expected):
    kinds = {"tables": tables, "down": down, "others": others}
    assert GgufFile(quantised_file(tmp_path / "m.gguf", kinds)).quantization == expected


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", "int4"), ("Q8_0", "int8")])
def test_a_quantised_file_keeps_its_bits_and_values(tmp_path, kind, bits):
    expected_ops = native_ops(bits)
    path = quantised_file(tmp_path / "m.gguf", {"tables": "Q8_0", "down": kind, "others": kind})
    load = partial(load_model, str(path), cache_dir=tmp_path, dtype="float32", progress=False)
    kept, plain = load(), load(quantize="none")
    assert (kept.model.ops, plain.model.ops) == (expected_ops, native_ops("float32"))
    tokens = tiny.prompt_tokens(20)
    logits, expected = (
        tiny.Sequence(loaded.model, loaded.params, len(tokens)).feed(tokens)
        for loaded in (kept, plain)
    )
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())


def test_a_second_start_dequantises_nothing(tmp_path, monkeypatch):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF)
    first = load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    monkeypatch.setattr(GgufFile, "tensors", None)
    second = load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    for name, weight in first.params.items():
        np.testing.assert_array_equal(second.params[name], weight)


def test_random_weights_read_only_the_shape_and_the_tokenizer_of_a_file(tmp_path, monkeypatch):
    path = tiny_gguf.write(tmp_path / "model.gguf", FAMILIES["gemma3"].tiny)
    options = {"dtype": "float32", "cache_dir": tmp_path / "cache", "progress": False}
    loaded = load_model(str(path), **options)
    monkeypatch.setattr(GgufFile, "tensors", None)
    for name in (path, path.parent):
        random = load_model(str(name), random_weights=True, **options)
        assert random.config == loaded.config
        assert random.tokenizer.decode(random.tokenizer.encode("the end")) == "the end"
        assert {n: w.shape for n, w in random.params.items()} == {
            n: w.shape for n, w in loaded.params.items()
        }


def test_weights_are_not_cached_on_a_full_disk(tmp_path, monkeypatch, caplog):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    load_model(str(path), cache_dir=tmp_path, ops=XLA, progress=False)
    assert "GB are needed; free disk space or choose another cache folder" in caplog.text
    assert not list((tmp_path / "models").iterdir())


def test_a_model_loads_without_a_writable_cache_folder(tmp_path, caplog):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF)
    (tmp_path / "file").write_text("not a folder")
    load_model(str(path), cache_dir=tmp_path / "file", ops=XLA, progress=False)
    assert "converted weights are not cached" in caplog.text


def test_the_embedded_models_file_loaded_by_path_is_another_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    keys = embedded.SHA256, "embedded-" + embedded.SHA256
    assert len({store.path(key, "float32") for key in keys}) == 2


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        ("llama", "attention.causal", False, r"llama.attention.causal False is not supported"),
        ("qwen3-moe", "expert_gating_func", 2, r"qwen3moe.expert_gating_func 2 is not supported"),
        # OLMo 3, which llama.cpp writes as OLMo 2.
        ("olmo2", "attention.sliding_window", 4096, "sliding_window is not supported"),
        ("llama", "rope.scaling.type", "dynamic", "rope type 'dynamic' is not supported"),
    ],
)
def test_fields_that_would_change_the_logits_are_refused(tmp_path, family, field, value, message):
    hf = FAMILIES[family].tiny
    fields = {f"{tiny_gguf.form_of(hf).architecture}.{field}": value}
    path = tiny_gguf.write(tmp_path / "model.gguf", hf, fields=fields)
    with pytest.raises(ModelLoadError, match=message):
        GgufFile(path).config()


def test_more_heads_than_dimensions_are_refused(tmp_path):
    fields, without = {"llama.attention.head_count": 1000}, ["llama.attention.key_length"]
    path = tiny_gguf.write(tmp_path / "model.gguf", HF, fields=fields, without=without)
    with pytest.raises(ModelLoadError, match="hidden_size 64 is not a multiple of num_attention_h"):
        GgufFile(path).config()
