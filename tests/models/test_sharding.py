"""A model sharded over several devices computes the same as on one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kvflow_jax.errors import ConfigError
from kvflow_jax.models import sharding
from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.model import Model
from kvflow_jax.models.sharding import AXIS, REPLICATED, Shards, weight_spec

pytestmark = pytest.mark.slow


def test_steps_on_four_devices_equal_those_on_one():
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.sharded_steps"],
        cwd=Path(__file__).parents[2],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_sizes_that_cannot_be_divided_are_named_in_the_error():
    assert sharding.shard_of(PRESETS["llama-3.1-8b"], 4).num_kv_heads == 2
    with pytest.raises(ConfigError, match="4 devices cannot share num_heads 9, num_kv_heads 3"):
        sharding.shard_of(PRESETS["smollm2-135m"], 4)


def test_experts_are_sharded_by_their_width():
    moe = MoeConfig(8, 2, intermediate_size=64, normalise_weights=True)
    shard = sharding.shard_of(replace(PRESETS["llama-3.1-8b"], moe=moe), 4)
    assert (shard.moe.intermediate_size, shard.moe.num_experts) == (16, 8)


@pytest.mark.parametrize(
    ("name", "num_axes", "spec"),
    [
        ("layers.attention.qkv_proj.weight", 3, PartitionSpec(None, None, AXIS)),
        ("layers.0.mlp.down_proj.weight", 2, PartitionSpec(AXIS, None)),
        ("embed.weight", 2, PartitionSpec(AXIS, None)),
        ("layers.mlp_norm.weight", 2, REPLICATED),
        ("layers.mlp.router.weight", 3, REPLICATED),
    ],
)
def test_projections_and_tables_are_sharded_and_all_else_is_replicated(name, num_axes, spec):
    assert weight_spec(name, num_axes) == spec


def test_columns_of_fused_projections_are_grouped_by_device():
    """An equal split must give each device its own q, k and v."""
    config = replace(PRESETS["llama-3.1-8b"], num_heads=4, num_kv_heads=2, head_dim=1)
    columns = jnp.arange(8)  # q0 q1 q2 q3 k0 k1 v0 v1
    grouped = sharding.group_columns_by_device("x.qkv_proj.weight", columns[None], config, 2)
    np.testing.assert_array_equal(grouped, [[0, 1, 4, 6, 2, 3, 5, 7]])
    grouped = sharding.group_columns_by_device("x.gate_up_proj.bias", columns[:4], config, 2)
    np.testing.assert_array_equal(grouped, [0, 2, 1, 3])
    assert sharding.group_columns_by_device("x.down_proj.weight", columns, config, 2) is columns


def test_a_single_shard_is_the_whole_model():
    config = replace(PRESETS["smollm2-135m"], num_layers=1)
    shards, model = Shards.of_devices(1), Model.build(config)
    local = shards.local_model(model)
    assert shards.num_shards == 1
    assert local.config == config
    assert local.specs == model.specs
    assert shards.weight_shardings(model).keys() == model.specs.keys()
    table, rows = jnp.arange(12.0).reshape(4, 3), jnp.array([3, 0])

    def lookup_and_project(table, rows):
        return local.ops.lookup(table, rows, table.shape[1]), local.ops.project(table[:2], table, 4)

    run = jax.shard_map(
        lookup_and_project,
        mesh=shards.mesh,
        in_specs=(PartitionSpec(AXIS), REPLICATED),
        out_specs=REPLICATED,
        check_vma=False,
    )
    found, logits = run(table, rows)
    np.testing.assert_array_equal(found, table[rows])
    np.testing.assert_array_equal(logits, table[:2] @ table.T)


@pytest.mark.parametrize(
    ("process_of_device", "num", "message"),
    [
        ([0], 2, "needs as many devices, and there are 1; a CPU counts as more with XLA_FLAGS"),
        ([0, 0, 1], 4, r"the processes have 2 \+ 1; lower --tensor-parallel"),
        ([0, 0, 1], 2, "leaves process 1 without a device: raise --tensor-parallel"),
    ],
)
def test_too_few_devices_and_idle_processes_are_errors(
    monkeypatch, process_of_device, num, message
):
    devices = [SimpleNamespace(process_index=i, platform="cpu") for i in process_of_device]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: len(set(process_of_device)))
    with pytest.raises(ConfigError, match=message):
        Shards.of_devices(num)
