"""The CPU kernels of this machine, for tests."""

import jax
import pytest

from kvflow_jax.models.kernels.cpu import build
from kvflow_jax.models.kernels.cpu.formats import BFloat16Format, Float32Format, GroupedFormat
from kvflow_jax.models.kernels.cpu.ops import NativeOps, ops_of
from kvflow_jax.models.loading.cache_folder import default_cache_dir

# Ops that pack weights alone, on any machine.
PACKING = {
    "native": NativeOps(Float32Format(24), Float32Format(24)),
    "bfloat16": NativeOps(BFloat16Format(), BFloat16Format()),
    "int8": NativeOps(GroupedFormat(8), GroupedFormat(8)),
    "int4": NativeOps(GroupedFormat(4), GroupedFormat(8)),
}


def has_kernels():
    """True if this machine has the kernels; builds them first."""
    return jax.default_backend() == "cpu" and build.register(default_cache_dir()) is not None


def native_ops(weights="float32"):
    """Return the kernels for weights in this form; skip the test without them."""
    if not has_kernels():
        pytest.skip("needs a CPU and a C++ compiler")
    return ops_of(build.register(default_cache_dir()), weights)
