"""The best dtype of a model on a device."""

from dataclasses import replace

import pytest

from kvflow_jax.models.dtypes import choose_dtype
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.loading.hf_config import read_config
from tests.models.families.cases import CONFIGS

# Platform and compute capability.
CPU, TPU, UNKNOWN = ("cpu", ""), ("tpu", ""), ("gpu", "")
T4, H100, MI300 = ("gpu", "7.5"), ("gpu", "9.0"), ("gpu", "gfx942")


@pytest.mark.parametrize(
    ("device", "saved", "family", "chosen"),
    [
        (CPU, "bfloat16", "llama", "float32"),
        (TPU, "float32", "llama", "bfloat16"),
        (TPU, "float16", "llama", "bfloat16"),
        (H100, "bfloat16", "llama", "bfloat16"),
        (H100, "float16", "llama", "float16"),
        (H100, "float32", "llama", "bfloat16"),
        (H100, "", "llama", "bfloat16"),
        (H100, "bfloat16", "gemma3", "bfloat16"),
        (H100, "float16", "gemma3", "float32"),
        (T4, "bfloat16", "llama", "float16"),
        (T4, "bfloat16", "gemma3", "float32"),
        (MI300, "bfloat16", "llama", "bfloat16"),
        (UNKNOWN, "", "llama", "bfloat16"),
    ],
)
def test_auto_chooses_by_device_checkpoint_and_family(device, saved, family, chosen):
    config = replace(PRESETS["llama-3.2-1b"], dtype=saved, family=family)
    assert choose_dtype("auto", config, *device) == chosen
    assert choose_dtype("float32", config, *device) == "float32"


def test_a_cpu_gets_bfloat16_where_that_is_fast():
    config = PRESETS["llama-3.2-1b"]
    assert choose_dtype("auto", config, *CPU, has_fast_bfloat16=lambda: True) == "bfloat16"
    assert choose_dtype("auto", config, *CPU, has_fast_bfloat16=lambda: False) == "float32"
    # Asking builds the kernels, which takes seconds.
    for device, name in ((H100, "auto"), (CPU, "float32")):
        choose_dtype(name, config, *device, has_fast_bfloat16=pytest.fail)


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_saved_dtype_is_read_from_either_field(field):
    assert read_config(CONFIGS["llama"] | {field: "float16"}).dtype == "float16"


def test_the_saved_dtype_may_be_outside_the_text_config():
    hf = {"text_config": CONFIGS["llama"], "architectures": ["LlamaForCausalLM"]}
    assert read_config(hf | {"dtype": "bfloat16"}).dtype == "bfloat16"
