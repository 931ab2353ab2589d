"""What JAX is told before it looks for GPUs; what the user has told it stays."""

import os

import pytest

from kvflow_jax.runtime.gpu_memory import raise_pinned_memory_limit, reserve_gpu_memory

HOST_GIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30


def test_a_server_takes_most():
    env = {}
    reserve_gpu_memory(env)
    assert env == {
        "XLA_CLIENT_MEM_FRACTION": "0.9",
        "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": str(max(64, HOST_GIB)),
    }


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_users_fraction_stays(name):
    env = {name: "0.5"}
    reserve_gpu_memory(env)
    assert {key: env[key] for key in env if "FRACTION" in key} == {name: "0.5"}


def test_a_notebook_shares_the_device():
    env = {}
    raise_pinned_memory_limit(env)
    assert list(env) == ["XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"]
    env = {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "8"}
    raise_pinned_memory_limit(env)
    assert env == {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "8"}
