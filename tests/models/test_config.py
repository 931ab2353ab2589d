import dataclasses

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models import embedded
from kvflow_jax.models.config import ModelConfig, RopeConfig
from kvflow_jax.models.loading import SHAPES
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny

LLAMA3 = tiny.CONFIGS["llama3-rope"]


def test_old_and_new_rope_fields_read_the_same():
    old = {key: value for key, value in LLAMA3.items() if not key.startswith("rope")}
    new = old | {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3["rope_scaling"]}}
    oldest = old | {
        "rope_theta": 500_000.0,
        "rope_scaling": {"type": "llama3", **LLAMA3["rope_scaling"], "rope_type": "llama3"},
    }
    expected = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 32)
    for hf in (LLAMA3, new, oldest):
        assert ModelConfig.from_hf(hf).rope == expected


def test_defaults_of_absent_fields():
    hf = dict(tiny.CONFIGS["tied-gqa"])
    for name in ("num_key_value_heads", "rope_theta", "tie_word_embeddings", "bos_token_id"):
        del hf[name]
    config = ModelConfig.from_hf(hf | {"eos_token_id": [5, 6]})
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 16
    assert config.rope == RopeConfig(theta=10_000.0)
    assert not config.tie_embeddings
    assert config.eos_token_ids == (5, 6)
    assert config.bos_token_id is None
    assert config.with_eos((6, 7)).eos_token_ids == (5, 6, 7)


def test_every_problem_is_named_at_once():
    hf = dict(tiny.CONFIGS["tied-gqa"])
    del hf["hidden_size"], hf["rms_norm_eps"]
    hf |= {
        "architectures": ["MambaForCausalLM"],
        "hidden_act": "gelu",
        "rope_scaling": {"rope_type": "yarn"},
        "num_key_value_heads": 3,
    }
    with pytest.raises(ModelLoadError) as caught:
        ModelConfig.from_hf(hf)
    message = str(caught.value)
    for part in (
        "hidden_size, rms_norm_eps",
        "MambaForCausalLM",
        "supported: LlamaForCausalLM",
        "'gelu'",
        "'yarn'",
        "default, llama3, linear",
        "multiple of num_key_value_heads 3",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": "x"}, "wrong type"),
        ({"max_position_embeddings": "x"}, "wrong type"),
        ({"rope_scaling": 5}, "wrong type"),
        ({"rope_scaling": {"rope_theta": "x"}}, "wrong type"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"eos_token_id": "x"}, "wrong type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ],
)
def test_values_that_cannot_be(change, part):
    with pytest.raises(ModelLoadError, match=part):
        ModelConfig.from_hf(LLAMA3 | change)


def test_rope_scaling_that_lacks_a_field():
    with pytest.raises(ModelLoadError, match="'llama3' lacks low_freq_factor, high_freq_factor"):
        ModelConfig.from_hf(LLAMA3 | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedded.CONFIG.num_layers = 2
    assert hash(embedded.CONFIG) == hash(dataclasses.replace(embedded.CONFIG))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("smollm2-135m", 134.5), ("llama-3.2-1b", 1235.8), ("llama-3.1-8b", 8030.3)],
)
def test_num_params_of_named_shapes(name, millions):
    assert SHAPES[name].num_params / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_num_params_counts_every_weight(name):
    config = ModelConfig.from_hf(tiny.CONFIGS[name])
    for ops in (XLA, XLA_ON_CPU):
        specs = Model.build(config, ops=ops).specs
        assert config.num_params == sum(spec.size for spec in specs.values())
