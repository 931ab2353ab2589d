import dataclasses

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.load import PRESETS
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from kvflow_jax.models.rope import RopeConfig
from tests.models import tiny

LLAMA3 = tiny.CONFIGS["llama3-rope"]


def test_defaults_of_absent_fields():
    hf = dict(tiny.CONFIGS["tied-gqa"])
    for name in ("num_key_value_heads", "rope_theta", "tie_word_embeddings", "bos_token_id"):
        del hf[name]
    config = read_config(hf | {"eos_token_id": [5, 6]})
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 16
    assert config.rope == RopeConfig(theta=10_000.0)
    assert not config.tie_embeddings
    assert config.eos_token_ids == (5, 6)
    assert config.bos_token_id is None
    assert config.with_eos((6, 7)).eos_token_ids == (5, 6, 7)


def test_every_problem_is_listed_at_once():
    hf = dict(tiny.CONFIGS["tied-gqa"])
    del hf["hidden_size"], hf["rms_norm_eps"]
    hf |= {
        "architectures": ["MambaForCausalLM"],
        "hidden_act": "gelu",
        "rope_scaling": {"rope_type": "dynamic"},
        "num_key_value_heads": 3,
    }
    with pytest.raises(ModelLoadError) as caught:
        read_config(hf)
    message = str(caught.value)
    for part in (
        "hidden_size, rms_norm_eps",
        "MambaForCausalLM",
        "supported: LlamaForCausalLM",
        "'gelu'",
        "'dynamic'",
        "default, linear, llama3, yarn, longrope",
        "multiple of num_key_value_heads 3",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": "x"}, "of the wrong type"),
        ({"max_position_embeddings": "x"}, "of the wrong type"),
        ({"rope_scaling": 5}, "of the wrong type"),
        ({"rope_scaling": {"rope_theta": "x"}}, "of the wrong type"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"eos_token_id": "x"}, "of the wrong type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"partial_rotary_factor": 0.2}, r"partial_rotary_factor 0\.2 of head_dim 16"),
    ],
)
def test_impossible_values_are_rejected(change, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config(LLAMA3 | change)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is not supported"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "found 4 of chunked_attention"),
        ("gemma3", {"layer_types": ["full_attention"] * 3}, "each of 4 layers, found 3"),
        (
            "qwen3-moe",
            {"mlp_only_layers": [1]},
            "layers without a mixture of experts are not supported",
        ),
        (
            "qwen3-moe",
            {"decoder_sparse_step": 2},
            "layers without a mixture of experts are not supported",
        ),
        ("qwen3-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is above num_experts 8"),
        ("qwen3-moe", {"num_experts": None}, "config.json lacks num_experts"),
        ("phi3-longrope", {"partial_rotary_factor": 1.0}, "must have 8 positive numbers, found 6"),
    ],
)
def test_fields_that_a_family_does_not_support_are_rejected(name, change, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config(tiny.CONFIGS[name] | change)


@pytest.mark.parametrize(
    ("name", "change", "windows"),
    [
        ("mistral-window", {}, (20, 20, 20)),
        ("mistral-window", {"sliding_window": None}, ()),
        ("mistral-window", {"sliding_window": 256, "max_position_embeddings": 256}, ()),
        ("gemma3", {"sliding_window": 128, "max_position_embeddings": 128}, (128, 128, 0, 128)),
        ("qwen2-biased", {}, ()),
        ("qwen2-late-windows-yarn", {}, (0, 16, 16)),
        ("qwen3-moe-unnormalised", {}, (24, 24, 24)),
        ("gemma3", {}, (12, 12, 0, 12)),
        ("gemma3", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, (0, 0, 0, 12)),
    ],
)
def test_windows_of_each_layer(name, change, windows):
    assert read_config(tiny.CONFIGS[name] | change).windows == windows


def test_missing_windows_have_transformers_defaults():
    hf = tiny.CONFIGS["mistral-window"] | {"max_position_embeddings": 8192}
    del hf["sliding_window"]
    assert set(read_config(hf).windows) == {4096}
    hf = tiny.CONFIGS["qwen2-biased"] | {"max_position_embeddings": 8192}
    hf.pop("sliding_window", None)
    hf |= {"use_sliding_window": True, "max_window_layers": 1}
    windows = read_config(hf).windows
    assert windows == (0, *[4096] * (len(windows) - 1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tied-gqa", {"num_key_value_heads": 0}),
        ("tied-gqa", {"head_dim": -2}),
        ("tied-gqa", {"rope_theta": 0}),
        ("tied-gqa", {"max_position_embeddings": float("inf")}),
        ("gemma3", {"sliding_window_pattern": 0}),
        ("qwen3-moe-unnormalised", {"num_experts_per_tok": -2}),
    ],
)
def test_sizes_must_be_above_0_and_finite(name, change):
    with pytest.raises(ModelLoadError, match="must be above 0 and finite"):
        read_config(tiny.CONFIGS[name] | change)


def test_tied_embeddings_may_be_overridden_outside_of_text_config():
    text = tiny.CONFIGS["gemma3"] | {"tie_word_embeddings": True}
    hf = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    assert read_config(hf).tie_embeddings
    assert not read_config(hf | {"tie_word_embeddings": False}).tie_embeddings


def test_the_text_config_of_a_multimodal_model_is_read():
    """That of gemma-3-4b-it, which leaves out the fields that have transformers' defaults."""
    hf = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    config = read_config(hf)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
    assert (config.head_dim, config.query_scalar, config.eos_token_ids) == (256, 256, (1, 106))
    assert config.windows == ((1024,) * 5 + (0,)) * 5 + (1024,) * 4
    assert config.rope == RopeConfig(1_000_000.0, "linear", 8.0)
    assert config.local_rope == RopeConfig(10_000.0)
    assert config.tie_embeddings


def test_num_experts_has_the_name_that_transformers_5_writes_too():
    hf = tiny.CONFIGS["qwen3-moe"]
    new = {key: value for key, value in hf.items() if key != "num_experts"}
    assert read_config(new | {"num_local_experts": 8}) == read_config(hf)


def test_a_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedded.CONFIG.num_layers = 2
    assert hash(embedded.CONFIG) == hash(dataclasses.replace(embedded.CONFIG))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("smollm2-135m", 134.5),
        ("qwen3-0.6b", 596.0),
        ("llama-3.2-1b", 1235.8),
        ("llama-3.1-8b", 8030.3),
    ],
)
def test_num_params_of_named_shapes(name, millions):
    assert PRESETS[name].num_params / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_num_params_counts_every_weight(name):
    config = read_config(tiny.CONFIGS[name])
    for ops in (XLA, XLA_ON_CPU):
        specs = Model.build(config, ops=ops).specs
        assert config.num_params == sum(spec.size for spec in specs.values())


def test_too_many_layers_are_rejected():
    with pytest.raises(ModelLoadError, match="num_hidden_layers is 1000000000"):
        read_config(tiny.CONFIGS["tied-gqa"] | {"num_hidden_layers": 1_000_000_000})


def test_eos_ids_outside_of_the_vocabulary_are_dropped():
    hf = tiny.CONFIGS["tied-gqa"] | {"eos_token_id": [-1, 5, 10**30]}
    assert read_config(hf).with_eos((6, 10**9)).eos_token_ids == (5, 6)
