"""Memory settings before JAX starts; settings of the user stay."""

import os

import pytest

from kvflow_jax.runtime.gpu_memory import raise_pinned_memory_limit, reserve_gpu_memory

HOST_GIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30


def test_a_server_preallocates_90_percent_and_may_pin_all_host_memory():
    env = {}
    reserve_gpu_memory(env)
    assert env == {
        "XLA_CLIENT_MEM_FRACTION": "0.9",
        "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": str(max(64, HOST_GIB)),
    }


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_fraction_that_the_user_has_set_stays(name):
    env = {name: "0.5"}
    reserve_gpu_memory(env)
    assert {key: env[key] for key in env if "FRACTION" in key} == {name: "0.5"}


def test_a_notebook_may_pin_all_host_memory_but_shares_the_gpu():
    env = {}
    raise_pinned_memory_limit(env)
    assert list(env) == ["XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"]
    env = {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "8"}
    raise_pinned_memory_limit(env)
    assert env == {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "8"}
