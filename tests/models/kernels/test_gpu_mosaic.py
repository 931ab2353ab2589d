"""Attention in Pallas on Mosaic GPU, run by JAX's interpreter and lowered for Hopper."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import (  # public from 0.11 on
    InterpretGPUParams,
    force_gpu_interpret_mode,
)
from jax.experimental.pallas import mosaic_gpu as plgpu

from kvflow_jax.models import attention
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels import gpu_mosaic, gpu_mosaic_program, gpu_splits
from kvflow_jax.models.kernels.base import Declined, KernelTarget
from tests.models.kernels.batches import (
    SHORT,
    RaggedBatch,
    attend_with_window,
    in_dtype,
    with_nan_past_contexts,
)
from tests.support.tiers import slow_except


@pytest.fixture
def gpu_interpreter(monkeypatch):
    """Run Mosaic GPU kernels on CPU, with NaN in unwritten memory and races of copies reported.

    The interpreter of JAX 0.10 finds no races. It supports neither layouts, which change no value,
    nor products with a transposed matrix: both are replaced by operations that it supports.
    """
    is_old = jax.__version__.startswith("0.10.")
    if is_old:

        def iota(dtype, shape, axis, *, layout):
            return jax.lax.broadcasted_iota(dtype, shape, axis)

        def product(a, b, *, transposed=False):
            b = b[...].T if transposed else b[...]
            return jnp.dot(a[...], b, preferred_element_type=jnp.float32)

        monkeypatch.setattr(plgpu, "layout_cast", lambda value, layout: value)
        monkeypatch.setattr(plgpu, "broadcasted_iota", iota)
        monkeypatch.setattr(gpu_mosaic_program, "_product", product)
    # The interpreter runs programs one after the other: few splits are faster.
    monkeypatch.setattr(gpu_splits, "MAX_SPLITS", 2)
    params = InterpretGPUParams(uninitialized_memory="nan", detect_races=not is_old)
    with force_gpu_interpret_mode(params):
        yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("heads", "page_size", "window", "dtype", "tolerance"),
    slow_except(
        [
            ((4, 2, 64), 16, 0, "bfloat16", 4e-2),
            ((4, 2, 64), 16, 1, "bfloat16", 4e-2),
            ((4, 2, 64), 16, 70, "float16", 6e-3),
            ((3, 3, 128), 8, 1000, "bfloat16", 4e-2),
            ((9, 1, 64), 128, 90, "float16", 6e-3),
            ((2, 1, 256), 64, 0, "float16", 6e-3),
        ],
        ((4, 2, 64), 16, 70, "float16", 6e-3),
    ),
    ids=str,
)
def test_it_equals_the_reference(gpu_interpreter, heads, page_size, window, dtype, tolerance):
    batch = RaggedBatch(heads, page_size, **SHORT, tile=40)
    batch = in_dtype(with_nan_past_contexts(batch), dtype)
    expected, expected_pool = attend_with_window(batch, attention.attend_reference, window)
    out, pool = attend_with_window(batch, gpu_mosaic.attend, window)
    np.testing.assert_allclose(out, expected, atol=tolerance)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.slow
@pytest.mark.parametrize(("block_len", "stages"), [(128, 1), (64, 3)])
def test_other_block_sizes_equal_the_reference(gpu_interpreter, block_len, stages):
    batch = RaggedBatch((4, 2, 64), 16, decode=[5, 0, 300], tiles=[(200, 40)], tile=40)
    batch = in_dtype(batch, "float16")
    expected, _ = attend_with_window(batch, attention.attend_reference)
    attend = partial(gpu_mosaic.attend, block_len=block_len, stages=stages)
    out, _ = attend_with_window(batch, attend)
    np.testing.assert_allclose(out, expected, atol=6e-3)


@pytest.mark.parametrize(
    ("heads", "page_size", "dtype"),
    [
        ((32, 8, 128), 16, "bfloat16"),
        ((9, 3, 64), 8, "float16"),
        ((4, 1, 256), 128, "bfloat16"),
    ],
    ids=str,
)
def test_it_lowers_for_hopper(heads, page_size, dtype):
    """Lowering infers the layouts of the threads' registers, and fails if there are none."""
    hopper = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    axis = {"axis_sizes": (1,), "axis_names": ("x",), "axis_types": (jax.sharding.AxisType.Auto,)}
    batch = in_dtype(RaggedBatch(heads, page_size, **SHORT, tile=40), dtype)
    attend = jax.jit(partial(gpu_mosaic.attend, config=AttentionConfig(1.0, (0, 70, 0))))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(**axis, abstract_device=hopper)):
        traced = attend.trace(batch.layer, *batch.qkv, batch.metadata, batch.pool)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("mosaic_gpu_v2") == 2  # decode rows, and tiles


def test_blocks_that_do_not_fit_shared_memory_are_declined():
    target = KernelTarget("gpu", PRESETS["llama-3.1-8b"], "bfloat16", 16, "9.0")
    with pytest.raises(Declined, match="bytes of shared memory; the limit is 232448"):
        gpu_mosaic.check(target, block_len=256, stages=2)
