"""A definition has the dtype, the operations and the memory of this machine's devices."""

import platform
from dataclasses import replace

import jax
import pytest

from kvflow_jax.errors import CapacityError, ConfigError, ModelLoadError
from kvflow_jax.models.attention import attend_reference
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.kernels.cpu import isa, ops
from kvflow_jax.models.kernels.cpu.build import Library
from kvflow_jax.models.loading import builder
from kvflow_jax.models.loading.builder import ModelBuilder
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.ops import XLA
from kvflow_jax.models.sharding import Shards
from tests.support.native import native_ops

AMX, AVX512_BF16, AVX512, AVX2 = (one.features for one in isa.X86)
CONFIG = read_config(FAMILIES["llama"].tiny)


@pytest.fixture
def machine(tmp_path):
    return ModelBuilder(
        dtype="float32",
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


def test_weights_stay_in_8_bits_where_xla_computes(machine):
    model = replace(machine, quantize="int8", shards=Shards.of_devices(1)).build(CONFIG)
    assert model.weights_bytes < 0.3 * machine.build(CONFIG).weights_bytes


@pytest.mark.parametrize(
    ("family", "quantize", "message"),
    [
        ("llama", "int4", "--quantize int4 needs the CPU kernels .* use int8"),
        ("qwen3-moe", "int8", r"does not support mixtures of experts \(qwen3-moe\); leave it out"),
    ],
)
def test_weights_that_cannot_be_quantised_are_refused(machine, family, quantize, message):
    machine = replace(machine, quantize=quantize, shards=Shards.of_devices(1))
    with pytest.raises(ConfigError, match=message):
        machine.build(read_config(FAMILIES[family].tiny))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "int4"),
        ({"quantize": "none"}, "float32"),
        ({"quantize": "int8"}, "int8"),
        ({"attention": "blocks"}, None),
    ],
)
def test_auto_keeps_the_bits_of_the_files_where_the_cpu_kernels_compute(machine, change, expected):
    native_ops()
    machine = replace(machine, cache_dir=default_cache_dir(), **{"quantize": "auto"} | change)
    found = machine.build(CONFIG, "int4").ops
    assert found.quantize == "none" if expected is None else found == native_ops(expected)
    moe = read_config(FAMILIES["qwen3-moe"].tiny)
    if machine.quantize == "auto":
        assert machine.build(moe, "int4").weights_dtype == "float32"


@pytest.fixture
def use_cpu(monkeypatch):
    """Take the kernels of a CPU that reports these features; without any, it has no compiler."""
    if jax.default_backend() != "cpu" or platform.machine() != "x86_64":
        pytest.skip("chooses among builds for x86")

    def use(features):
        library = Library(isa.supported(features)[0], lanes=16) if features else None
        monkeypatch.setattr(ops, "register", lambda cache_dir: library)

    monkeypatch.delenv(isa.MAX_ISA, raising=False)
    return use


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        (AMX, "bfloat16"),
        (AVX512_BF16, "bfloat16"),
        (AVX512, "float32"),
        (AVX2, "float32"),
        (None, "float32"),
    ],
)
def test_auto_takes_bfloat16_where_the_cpus_kernels_multiply_it_fast(
    machine, use_cpu, features, dtype, caplog
):
    use_cpu(features)
    caplog.set_level("INFO", "kvflow_jax.models")
    machine = replace(machine, dtype="auto")
    assert machine.build(CONFIG).dtype == dtype
    advice = " (auto: the fastest on this device; --dtype float32 for full precision)"
    line = f"dtype of weights and KV cache: {dtype}"
    assert line + (advice if dtype == "bfloat16" else "") in caplog.messages
    assert replace(machine, quantize="int8" if features else "none").build(CONFIG).dtype == dtype


def test_auto_takes_float32_below_the_instructions_of_bfloat16(machine, use_cpu, monkeypatch):
    monkeypatch.setenv(isa.MAX_ISA, "avx512")
    use_cpu(AMX)
    assert replace(machine, dtype="auto").build(CONFIG).dtype == "float32"


@pytest.mark.parametrize("saved", ["", "float32", "float16", "bfloat16"])
def test_auto_casts_a_checkpoint_of_any_dtype(machine, use_cpu, saved):
    use_cpu(AMX)
    config = replace(CONFIG, dtype=saved)
    assert replace(machine, dtype="auto").build(config).dtype == "bfloat16"
    assert machine.build(config).dtype == "float32"  # which the user has named


@pytest.mark.parametrize(
    "hf",
    [{**FAMILIES["qwen3-moe"].tiny, "head_dim": 16}, {**FAMILIES["llama"].tiny, "head_dim": 20}],
)
def test_auto_takes_float32_for_models_that_the_kernels_do_not_take(machine, use_cpu, hf):
    use_cpu(AMX)
    assert replace(machine, dtype="auto").build(read_config(hf)).dtype == "float32"


@pytest.mark.parametrize("change", ["attention", "ops", "shards"])
def test_auto_takes_float32_where_xla_computes(machine, use_cpu, change):
    use_cpu(AMX)
    value = {"attention": "blocks", "ops": XLA, "shards": Shards.of_devices(1)}[change]
    assert replace(machine, dtype="auto", **{change: value}).build(CONFIG).dtype == "float32"
