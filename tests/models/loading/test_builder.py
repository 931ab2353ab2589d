"""A definition has the dtype, the operations and the memory of this machine's devices."""

from dataclasses import replace

import jax
import pytest

from kvflow_jax.errors import CapacityError, ConfigError, ModelLoadError
from kvflow_jax.models.attention import attend_reference
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading import builder
from kvflow_jax.models.loading.builder import ModelBuilder
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.ops import XLA

CONFIG = read_config(FAMILIES["llama"].tiny)


@pytest.fixture
def machine(tmp_path):
    return ModelBuilder(
        dtype="auto",
        quantize="none",
        cache_dir=tmp_path,
        ops=None,
        attention="auto",
        page_size=16,
        max_model_len=None,
        shards=None,
        check_model=lambda model: None,
    )


def test_an_unsupported_dtype_is_rejected(machine):
    with pytest.raises(ModelLoadError, match="supported: auto, float32, bfloat16, float16"):
        replace(machine, dtype="int8").build(CONFIG)


def test_a_cpu_unrolls_layers_unless_ops_are_given(machine):
    assert machine.build(CONFIG).unroll == (jax.default_backend() == "cpu")
    assert "layers.mlp.down_proj.weight" in replace(machine, ops=XLA).build(CONFIG).specs


def test_an_attention_kernel_is_chosen_by_name(machine):
    assert replace(machine, attention="reference").build(CONFIG).ops.attention is attend_reference
    with pytest.raises(ConfigError, match="'tpu-ragged' cannot be used"):
        replace(machine, attention="tpu-ragged").build(CONFIG)


def test_processes_that_share_a_model_can_compare_definitions(machine):
    seen = []
    model = replace(machine, check_model=seen.append).build(CONFIG)
    assert seen == [model]


def test_weights_that_do_not_fit_are_rejected(machine, monkeypatch):
    monkeypatch.setattr(builder, "free_host_bytes", lambda: 50_000)
    with pytest.raises(
        CapacityError, match=r"free on the host \(.* GB short\); use a smaller dtype"
    ):
        machine.build(CONFIG)
