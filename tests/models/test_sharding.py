"""A model cut over several devices computes what it computes on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.models import sharding
from kvflow_jax.models.loading.presets import SHAPES


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


def test_what_cannot_be_cut_is_named():
    assert sharding.shard_of(SHAPES["llama-3.1-8b"], 4).num_kv_heads == 2
    with pytest.raises(ConfigError, match="4 devices cannot share num_heads 9, num_kv_heads 3"):
        sharding.shard_of(SHAPES["smollm2-135m"], 4)
