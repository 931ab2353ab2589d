"""What holds for every model family, over the registry and over the variants of each family."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES, PRESETS, load_families
from kvflow_jax.models.families.base import Weight
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import weight_slices
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny
from tests.models.families.cases import CONFIGS, EXPECTED, family_of
from tests.models.families.expected import (
    GREEDY_PROMPT,
    NUM_GREEDY,
    NUM_TOKENS,
    POSITIONS,
    PROMPT,
    TOKENS,
    TOLERANCE,
)
from tests.models.sources import folder_weights, read_all
from tests.support.tiers import slow_except

FAST = ("llama", "qwen3-moe", "gemma3")


@pytest.mark.parametrize("modules", [["llama", "no_such"], ["base"]])
def test_a_registered_module_without_a_record_is_named(modules):
    with pytest.raises(ValueError, match=f"no FAMILY in models/families/{modules[-1]}.py"):
        load_families(modules)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "llama"}, "llama and qwen3 both have name llama"),
        ({"architectures": ("LlamaForCausalLM",)}, "both have architecture LlamaForCausalLM"),
        ({"gguf": FAMILIES["llama"].gguf}, "both have GGUF architecture llama"),
    ],
)
def test_two_records_with_one_name_are_named(monkeypatch, change, message):
    record = FAMILIES["qwen3"]
    tiny_config = {**record.tiny, "architectures": change.get("architectures", ["X"])}
    record = dataclasses.replace(
        record, **({"architectures": ("X",)} | change), tiny=tiny_config, presets={}
    )
    monkeypatch.setattr("kvflow_jax.models.families.qwen3.FAMILY", record)
    with pytest.raises(ValueError, match=message):
        load_families(["llama", "qwen3"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_weight_without_a_tensor_is_named(name, monkeypatch):
    config = read_config(FAMILIES[name].tiny)
    tensors = {key: at for key, at in FAMILIES[name].tensors.items() if at.weight != "final_norm"}
    record = dataclasses.replace(FAMILIES[name], tensors=tensors)
    monkeypatch.setitem(FAMILIES, name, record)
    with pytest.raises(ModelLoadError, match=f"'{name}' names no tensor for final_norm.weight"):
        weight_slices(Model.build(config))


def test_records_can_name_every_weight_that_a_model_may_have():
    config = read_config(FAMILIES["llama"].tiny)
    every = {"tie_embeddings": False, "out_norms": True}
    configs = [
        dataclasses.replace(config, qk_norm=kind, **every) for kind in ("head", "projection")
    ]
    configs.append(read_config(FAMILIES["qwen3-moe"].tiny))
    specs = [name for config in configs for name in Model.build(config).stacked_specs]
    assert {name.rpartition(".")[0] for name in specs} == {*get_args(Weight)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_is_the_one_that_transformers_reads_and_writes(name, tmp_path):
    hf = CONFIGS[name]
    folder = tiny.write_folder(tmp_path, hf, weights={}, tokenizer=False)
    written = AutoConfig.from_pretrained(folder).to_dict()
    config = dataclasses.replace(read_config(hf), dtype="")
    assert dataclasses.replace(read_config(written), dtype="") == config


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_fields_have_the_defaults_of_transformers(name):
    family = FAMILIES[name]
    hf = {key: value for key, value in family.tiny.items() if key not in family.defaults}
    written = CONFIG_MAPPING[hf["model_type"]](**hf).to_dict()
    written["architectures"] = hf["architectures"]
    config = dataclasses.replace(read_config(hf), dtype="")
    assert dataclasses.replace(read_config(written), dtype="") == config


@pytest.mark.parametrize("name", CONFIGS)
def test_num_params_counts_every_weight(name):
    config = read_config(CONFIGS[name])
    for ops in (XLA, XLA_ON_CPU):
        specs = Model.build(config, ops=ops).specs
        assert config.num_params == sum(spec.size for spec in specs.values())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("smollm2-135m", 134.5),
        ("qwen3-0.6b", 596.0),
        ("llama-3.2-1b", 1235.8),
        ("llama-3.1-8b", 8030.3),
        ("qwen3-30b-a3b", 30532.1),
    ],
)
def test_presets_have_the_size_of_the_published_model(name, millions):
    assert PRESETS[name].num_params / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_fill_every_column_of_every_weight_once(name):
    model = Model.build(read_config(CONFIGS[name]))
    columns = {}
    for target in weight_slices(model).values():
        columns.setdefault((target.name, target.index), []).append(target.columns)
    for weight, spec in model.stacked_specs.items():
        indices = [index for filled, index in columns if filled == weight]
        assert indices
        for index in indices:
            ends = sorted((run.start, run.stop) for run in columns[weight, index])
            starts, stops = zip(*ends, strict=True)
            assert (*starts, spec.shape[-1]) == (0, *stops)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_slice_equals_that_of_the_whole_weight(tmp_path, name):
    model = Model.build(read_config(CONFIGS[name]))
    source = folder_weights(model, tiny.write_folder(tmp_path / "m", CONFIGS[name], shards=2))
    whole, rng = read_all(model, source), np.random.default_rng(0)
    for weight, expected in whole.items():
        for _ in range(4):
            bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in expected.shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
            out = np.empty_like(expected[index])
            source.read(weight, index, out)
            np.testing.assert_array_equal(out, expected[index])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_16_bits_of_a_checkpoint_are_kept(name, dtype, tmp_path):
    model, offset = Model.build(read_config(CONFIGS[name])), FAMILIES[name].norm_offset
    halves = tiny.hf_weights(CONFIGS[name], dtype=dtype)
    floats = {key: weight.astype(np.float32) for key, weight in halves.items()}
    weights = [
        read_all(model, folder_weights(model, tiny.write_folder(tmp_path / kind, hf, weights=each)))
        for kind, hf, each in (("16", CONFIGS[name], halves), ("32", CONFIGS[name], floats))
    ]
    for key, weight in weights[0].items():
        # The offset may be added in the dtype of the checkpoint.
        tolerance = 2**-8 if offset and "norm" in key else 0
        np.testing.assert_allclose(weight, weights[1][key], rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", slow_except(CONFIGS, *FAST))
def test_logits_and_greedy_tokens_are_those_of_transformers(name, tmp_path):
    folder = tiny.write_folder(tmp_path / name, CONFIGS[name])
    loaded = load_model(str(folder), dtype="float32", progress=False)

    cold = tiny.Sequence(loaded.model, loaded.params, NUM_TOKENS).feed(PROMPT)
    compared = cold[np.ix_(POSITIONS, TOKENS)]
    np.testing.assert_allclose(compared, EXPECTED[name].logits, atol=TOLERANCE)

    # A cached prefix, a padded chunk that continues it, then tokens one at a time.
    sequence = tiny.Sequence(loaded.model, loaded.params, GREEDY_PROMPT + NUM_GREEDY, page_size=8)
    pieces = [sequence.feed(PROMPT[:33], 40), sequence.feed(PROMPT[33:60], 40)]
    pieces += [sequence.feed([token]) for token in PROMPT[60:]]
    np.testing.assert_allclose(np.concatenate(pieces), cold, atol=TOLERANCE)

    # Greedy tokens, up to the first step whose top two logits are within the tolerance.
    sequence.len = 0
    logits = sequence.feed(PROMPT[:GREEDY_PROMPT], 40)[-1]
    for expected in EXPECTED[name].greedy:
        second, first = np.sort(logits)[-2:]
        if first - second < TOLERANCE:
            break
        assert logits.argmax() == expected
        logits = sequence.feed([expected])[0]


def stored_in_gguf(name):
    """Return the config.json of a case as far as a .gguf file can hold it; None if it cannot."""
    hf, config = CONFIGS[name], read_config(CONFIGS[name])
    if family_of(name).gguf is None:
        return None
    # GGUF has no field for the windows of these: llama.cpp computes them without.
    if config.windows and name.startswith("qwen"):
        return None
    # Nor for the query scalar, which it computes from head_dim.
    return {**hf, "query_pre_attn_scalar": config.head_dim}


@pytest.mark.parametrize(
    "name", slow_except([name for name in CONFIGS if stored_in_gguf(name)], "llama", "gemma3")
)
def test_a_gguf_file_has_the_config_and_the_logits_of_its_folder(name, tmp_path):
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    from kvflow_jax.models.loading.gguf import GgufFile

    hf = stored_in_gguf(name)
    path = tiny_gguf.write(tmp_path / "model.gguf", hf)
    file, expected = GgufFile(path).config(), read_config(hf)
    # The converter replaces llama3's scaling with factors.
    if expected.rope.kind != "llama3":
        # The fields of a file are float32.
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
    np.testing.assert_allclose(tiny.logits_of(path), tiny.logits_of(folder), atol=1e-4)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.gguf])
def test_llama_cpp_has_a_name_for_every_tensor(name):
    pytest.importorskip("gguf")
    from kvflow_jax.models.loading.gguf_tensors import gguf_name, name_map

    model = Model.build(read_config(FAMILIES[name].tiny))
    names = name_map(FAMILIES[name].gguf.architecture, model.config.num_layers)
    tensors = [gguf_name(names, key) for key in weight_slices(model)]
    assert all(tensor for tensor, _ in tensors)
    assert len({*tensors}) == len(tensors)
