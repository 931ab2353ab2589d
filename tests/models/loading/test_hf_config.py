import dataclasses
import json

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.hf_config import read_config, read_config_file
from tests.models.families.cases import CONFIGS

LLAMA = dict(FAMILIES["llama"].tiny)
LLAMA3 = CONFIGS["llama-llama3-rope"]


def test_every_problem_is_listed_at_once():
    hf = dict(LLAMA)
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
        ({"hidden_size": "x"}, "of the wrong type: hidden_size is 'x'"),
        ({"max_position_embeddings": [1]}, r"of the wrong type: max_position_embeddings is \[1\]"),
        ({"rope_scaling": 5}, "of the wrong type: rope_scaling is 5"),
        ({"rope_scaling": {"rope_theta": "x"}}, "of the wrong type: rope_theta is 'x'"),
        ({"architectures": 5}, "of the wrong type: architectures is 5"),
        ({"text_config": "x"}, "of the wrong type: text_config is 'x'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"eos_token_id": "x"}, "of the wrong type: eos_token_id is 'x'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"partial_rotary_factor": 0.2}, r"partial_rotary_factor 0\.2 of head_dim 16"),
    ],
)
def test_impossible_values_are_rejected(change, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config(LLAMA3 | change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 0},
        {"head_dim": -2},
        {"rope_theta": 0},
        {"max_position_embeddings": float("inf")},
    ],
)
def test_sizes_must_be_above_0_and_finite(change):
    name = next(iter(change))
    with pytest.raises(ModelLoadError, match=f"must be above 0 and finite, but {name} is"):
        read_config(LLAMA | change)


def test_a_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedded.CONFIG.num_layers = 2
    assert hash(embedded.CONFIG) == hash(dataclasses.replace(embedded.CONFIG))


def test_too_many_layers_are_rejected():
    with pytest.raises(ModelLoadError, match="num_hidden_layers is 1000000000"):
        read_config(LLAMA | {"num_hidden_layers": 1_000_000_000})


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("llama", {"vocab_size": 10**12}, "vocab_size is 1000000000000, above the limit"),
        ("llama", {"head_dim": 10**9}, "head_dim is 1000000000, above the limit of 65536"),
        ("llama", {"hidden_size": 10**12}, "hidden_size is 1000000000000, above the limit"),
        ("llama", {"num_attention_heads": 10**30}, "above the limit of 2147483647"),
        ("llama", {"max_position_embeddings": 10**30}, "above the limit of 2147483647"),
        ("llama", {"hidden_size": "x" * 10**6}, "values of the wrong type: hidden_size is 'xxx"),
        ("llama", {"hidden_act": "x" * 10**6}, "hidden_act 'xxx"),
        ("qwen3-moe", {"num_experts": 10**9}, "num_experts is 1000000000, above the limit of 8192"),
        (
            "qwen3-moe",
            {"num_experts": 8192, "num_hidden_layers": 4096},
            "num_experts 8192 in each of 4096 layers are above the limit of 131072",
        ),
    ],
)
def test_sizes_that_would_fill_memory_are_refused(architecture, change, message):
    with pytest.raises(ModelLoadError) as caught:
        read_config(FAMILIES[architecture].tiny | change)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_eos_ids_outside_of_the_vocabulary_are_dropped():
    hf = LLAMA | {"eos_token_id": [-1, 5, 10**30]}
    assert read_config(hf).with_eos((6, 10**9)).eos_token_ids == (5, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing file"),
        ("{", "is not JSON, download it again"),
        ("[]", "is not a JSON object, download it again"),
    ],
)
def test_a_file_that_is_no_config_is_rejected(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=message):
        read_config_file(tmp_path)


def test_a_file_is_read_as_its_content(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config_file(tmp_path) == read_config(LLAMA)


def test_the_language_model_of_a_multimodal_config_is_read():
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    outside = {"architectures": LLAMA["architectures"], "eos_token_id": [1, 2]}
    config = read_config({"text_config": text, **outside})
    assert config == read_config(LLAMA | outside)
