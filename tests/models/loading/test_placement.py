"""Devices hold the weights of their source, and no more is read than they hold."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kvflow_jax.models.loading import placement
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU, XlaOps
from kvflow_jax.models.sharding import column_slices
from tests.models.families.cases import CONFIGS
from tests.models.sources import CountedTensors, HostWeights
from tests.support.native import PACKING

CONFIG = read_config(CONFIGS["llama-untied-mha"])
OPS = {
    "scanned": XLA,
    "scanned-int8": XlaOps(quantize="int8"),
    "unrolled": XLA_ON_CPU,
    "unrolled-int8": XlaOps(platform="cpu", quantize="int8"),
    **PACKING,
}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def allocated(monkeypatch):
    """The arrays allocated on the host."""
    arrays = []

    def aligned_empty(shape, dtype, original=placement.aligned_empty):
        arrays.append(original(shape, dtype))
        return arrays[-1]

    monkeypatch.setattr(placement, "aligned_empty", aligned_empty)
    return arrays


@pytest.mark.parametrize("discrete_memory", [False, True])
@pytest.mark.parametrize("ops", OPS.values(), ids=OPS)
def test_every_weight_is_read_once_into_its_leaves(ops, discrete_memory):
    model = Model.build(CONFIG, ops=ops)
    source = HostWeights.random(model)
    params = placement.place(model, source, discrete_memory=discrete_memory)
    assert {name: (w.shape, w.dtype) for name, w in params.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in model.specs.items()
    }
    for name, weight in source.arrays.items():
        for leaf, layer in model.leaves(name):
            expected = model.pack(name, weight if layer is None else weight[layer])
            jax.tree.map(np.testing.assert_array_equal, params[leaf], expected)
        assert source.num_read[name] == weight.size


def test_a_cpu_device_uses_the_host_memory_that_was_read_into(allocated):
    model = Model.build(CONFIG, ops=XLA_ON_CPU)
    params = placement.place(model, HostWeights.random(model), discrete_memory=False)
    used = {weight.unsafe_buffer_pointer() for weight in params.values()}
    assert used == {array.ctypes.data for array in allocated}


@pytest.mark.parametrize("name", ["scanned", "scanned-int8"])
def test_a_device_with_discrete_memory_receives_chunks(allocated, monkeypatch, name):
    monkeypatch.setattr(placement, "STAGING_BYTES", 10_000)
    model = Model.build(CONFIG, ops=OPS[name])
    source = HostWeights.random(model)
    params = placement.place(model, source, discrete_memory=True)
    for name, weight in source.arrays.items():
        jax.tree.map(np.testing.assert_array_equal, params[name], model.pack(name, weight))
    layer_bytes = [weight[0].nbytes for weight in source.arrays.values() if weight.ndim == 3]
    assert max(array.nbytes for array in allocated) == max(layer_bytes)
    assert len(allocated) > 2 * CONFIG.num_layers
    embed_bytes = source.arrays["embed.weight"].nbytes
    assert sum(array.nbytes <= 10_000 for array in allocated) > embed_bytes // 10_000


def test_the_progress_bar_counts_weights(capfd):
    model = Model.build(CONFIG)
    placement.place(model, HostWeights.random(model), progress=True)
    assert (
        f"{CONFIG.num_params / 1e3:.0f}k/{CONFIG.num_params / 1e3:.0f}k" in capfd.readouterr().err
    )


def test_each_device_has_its_heads_side_by_side():
    # 4 heads and 2 KV heads of 16 dimensions.
    config = read_config(CONFIGS["llama"])
    width = config.qkv_size
    assert column_slices("layers.attention.qkv_proj.weight", width, config, 2) == [
        [slice(0, 32), slice(64, 80), slice(96, 112)],
        [slice(32, 64), slice(80, 96), slice(112, 128)],
    ]
    assert column_slices("layers.mlp.gate_up_proj.bias", 192, config, 2) == [
        [slice(0, 48), slice(96, 144)],
        [slice(48, 96), slice(144, 192)],
    ]
    assert column_slices("layers.mlp.down_proj.weight", 64, config, 2) is None


@pytest.mark.parametrize("axis", [1, 2])
def test_only_the_requested_slice_of_a_tensor_is_read(folder, axis):
    """Along either axis: Hugging Face's tensors are transposed."""
    model = Model.build(read_config(CONFIGS["llama"]))
    tensors = CountedTensors(FolderTensors(folder))
    source = NamedWeights(model, tensors)
    for name in ("layers.attention.qkv_proj.weight", "layers.mlp.down_proj.weight"):
        index = [slice(0, size) for size in model.stacked_specs[name].shape]
        index[axis] = slice(0, index[axis].stop // 2)
        out = np.empty([bounds.stop for bounds in index], np.float32)
        tensors.num_bytes = 0
        source.read(name, tuple(index), out)
        assert tensors.num_bytes == out.nbytes


def start(script, *args, num_devices=1):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", script, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def test_weights_on_two_devices_equal_those_on_one(tmp_path):
    with start("tests.models.loading.sharded_weights", tmp_path, num_devices=2) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_each_of_two_processes_reads_the_shards_of_its_device():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    processes = [start("tests.models.loading.placed_part", port, i) for i in range(2)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
