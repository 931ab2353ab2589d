"""The kernels of accelerators, computed by JAX's interpreters, and how one is chosen."""

import logging
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
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as tpu_kernel

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.errors import ConfigError
from kvflow_jax.models import attention
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.kernels import (
    AUTO,
    KERNELS,
    choose_attention,
    gpu_mosaic,
    gpu_mosaic_program,
    gpu_paged,
    gpu_splits,
    tpu_ragged,
)
from kvflow_jax.models.kernels.base import Case as Choice
from kvflow_jax.models.kernels.base import Declined
from kvflow_jax.models.loading.load import SHAPES
from kvflow_jax.serve.__main__ import ATTENTIONS
from tests.models.kernels.cpu.test_ops import Case

MIXED = {"decode": [1, 300, 0, 17, 256, 257], "tiles": [(0, 40), (100, 33), (0, 0), (250, 40)]}
RAGGED = {
    "mixed": MIXED,
    "decode only": {"decode": [64, 1, 65], "tiles": []},
    "tiles only": {"decode": [], "tiles": [(0, 7), (130, 40)]},
    "padding first": {"decode": [0, 0, 40], "tiles": [(0, 0), (30, 1)]},
    "all padding": {"decode": [0], "tiles": [(0, 0)]},
}


def run(case, attend, window=0):
    """The middle of three layers, which alone has the window."""
    kind = AttentionKind(0.8 * case.spec.head_dim**-0.5, (0, window, 0))
    attend = jax.jit(partial(attend, kind=kind))
    out, pool = attend(case.layer, *case.qkv, case.rows, case.pool)
    return np.asarray(out, np.float32), np.asarray(pool.data, np.float32)


def in_dtype(case, dtype):
    case.qkv = [jnp.asarray(x, dtype) for x in case.qkv]
    case.pool = KVPool(jnp.asarray(case.pool.data, dtype), case.spec)
    return case


def spoil_what_nobody_sees(case):
    """Past a context's end pages hold what their last owners wrote, numbers or not."""
    page_size = case.spec.page_size
    data = np.array(case.pool.data).reshape(3, case.spec.num_kv_slots, -1)
    ends = np.asarray(case.rows.query_start + case.rows.query_len)
    for pages, end in zip(np.asarray(case.rows.page_table), ends.tolist(), strict=True):
        for position in range(end, len(pages) * page_size):
            data[:, pages[position // page_size] * page_size + position % page_size] = np.nan
    case.pool = KVPool(jnp.asarray(data.reshape(case.pool.data.shape)), case.spec)
    return case


GPU = partial(gpu_paged.attend, interpret=True)


@pytest.mark.parametrize(
    ("heads", "page_size", "ragged", "window"),
    [
        *(((6, 2, 32), 16, ragged, 0) for ragged in RAGGED),
        *(((6, 2, 32), 16, "mixed", window) for window in (1, 70, 1000)),
        ((4, 4, 16), 1, "decode only", 30),
        ((9, 3, 64), 7, "mixed", 0),
        ((20, 1, 128), 128, "mixed", 100),
    ],
    ids=str,
)
def test_gpu_paged(heads, page_size, ragged, window):
    case = spoil_what_nobody_sees(Case(heads, page_size, **RAGGED[ragged], tile=40))
    expected, expected_pool = run(case, attention.attend_reference, window)
    out, pool = run(case, GPU, window)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-2), ("float16", 6e-3)])
def test_gpu_paged_in_low_precision(dtype, tolerance):
    case = in_dtype(Case((6, 2, 64), 16, **MIXED, tile=40), dtype)
    expected, _ = run(case, attention.attend_reference)
    out, _ = run(case, GPU)
    np.testing.assert_allclose(out, expected, atol=tolerance)


@pytest.fixture
def gpu_interpreter(monkeypatch):
    """Computes Mosaic GPU kernels on CPU: unwritten memory is NaN, copies race where they may.

    The interpreter of JAX 0.10 finds no races and knows neither layouts, which change no value, nor
    products with a transposed matrix: these are said in its terms.
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
    monkeypatch.setattr(gpu_splits, "MAX_SPLITS", 2)  # programs go one after the other
    params = InterpretGPUParams(uninitialized_memory="nan", detect_races=not is_old)
    with force_gpu_interpret_mode(params):
        yield
    jax.clear_caches()


SHORT = {"decode": [1, 150, 0, 17, 128], "tiles": [(0, 40), (100, 33), (0, 0)]}


@pytest.mark.parametrize(
    ("heads", "page_size", "window", "dtype", "tolerance"),
    [
        ((4, 2, 64), 16, 0, "bfloat16", 4e-2),
        ((4, 2, 64), 16, 1, "bfloat16", 4e-2),
        ((4, 2, 64), 16, 70, "float16", 6e-3),
        ((3, 3, 128), 8, 1000, "bfloat16", 4e-2),
        ((9, 1, 64), 128, 90, "float16", 6e-3),
        ((2, 1, 256), 64, 0, "float16", 6e-3),
    ],
    ids=str,
)
def test_gpu_mosaic(gpu_interpreter, heads, page_size, window, dtype, tolerance):
    case = in_dtype(spoil_what_nobody_sees(Case(heads, page_size, **SHORT, tile=40)), dtype)
    expected, expected_pool = run(case, attention.attend_reference, window)
    out, pool = run(case, gpu_mosaic.attend, window)
    np.testing.assert_allclose(out, expected, atol=tolerance)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize(("block_len", "stages"), [(128, 1), (64, 3)])
def test_gpu_mosaic_in_other_blocks(gpu_interpreter, block_len, stages):
    case = in_dtype(Case((4, 2, 64), 16, decode=[5, 0, 300], tiles=[(200, 40)], tile=40), "float16")
    expected, _ = run(case, attention.attend_reference)
    out, _ = run(case, partial(gpu_mosaic.attend, block_len=block_len, stages=stages))
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
def test_gpu_mosaic_is_lowered_for_hopper(heads, page_size, dtype):
    """Which thread holds what is inferred then, and fails where no way is found."""
    hopper = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    axis = {"axis_sizes": (1,), "axis_names": ("x",), "axis_types": (jax.sharding.AxisType.Auto,)}
    case = in_dtype(Case(heads, page_size, **SHORT, tile=40), dtype)
    attend = jax.jit(partial(gpu_mosaic.attend, kind=AttentionKind(1.0, (0, 70, 0))))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(**axis, abstract_device=hopper)):
        traced = attend.trace(case.layer, *case.qkv, case.rows, case.pool)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("mosaic_gpu_v2") == 2  # decode rows, and tiles


@pytest.fixture
def tpu_interpreter(monkeypatch):
    """Computes TPU kernels on CPU: unwritten memory is NaN, copies race where they may.

    The interpreter knows neither reads of a reshaped buffer nor masked writes to a part of one
    (JAX 0.10): two lines of JAX's kernel are said in its terms.
    """

    def wait(self):
        for copy in self._async_copies:
            copy.wait()
        return self._vmem_buf[...]

    def store(ref, value, *, mask):
        ref[...] = jnp.where(mask, value, ref[...])

    monkeypatch.setattr(tpu_kernel.MultiPageAsyncCopyDescriptor, "wait", wait)
    monkeypatch.setattr(pltpu, "store", store)
    params = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    with pltpu.force_tpu_interpret_mode(params):
        yield
    jax.clear_caches()  # of programs that would be interpreted still


@pytest.mark.parametrize(
    ("heads", "page_size", "ragged", "window"),
    [
        ((4, 2, 128), 16, "mixed", 0),
        ((4, 2, 128), 16, "mixed", 70),
        ((8, 1, 128), 64, "padding first", 0),
        ((2, 2, 256), 16, "tiles only", 3),
    ],
    ids=str,
)
def test_tpu_ragged(tpu_interpreter, heads, page_size, ragged, window):
    case = spoil_what_nobody_sees(Case(heads, page_size, **RAGGED[ragged], tile=40))
    expected, expected_pool = run(case, attention.attend_reference, window)
    out, pool = run(case, tpu_ragged.attend, window)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_array_equal(pool, expected_pool)


def test_tpu_ragged_takes_rows_a_few_at_a_time(tpu_interpreter, monkeypatch):
    case = Case((4, 2, 128), 16, decode=[5, 0, 90], tiles=[(20, 8), (0, 3)], tile=8)
    expected, _ = run(case, attention.attend_reference)
    monkeypatch.setattr(tpu_ragged, "TABLE_BYTES", 2 * 2 * 4 * case.rows.page_table.shape[1])
    out, _ = run(case, tpu_ragged.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def choice(platform, shape="llama-3.1-8b", dtype="bfloat16", page_size=16, capability="9.0"):
    capability = capability if platform == "gpu" else ""
    return Choice(platform, SHAPES[shape], dtype, page_size, capability)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (choice("cpu"), "blocks"),
        (choice("gpu"), "blocks"),
        (choice("tpu"), "tpu-ragged"),
        (choice("tpu", shape="llama-3.2-1b"), "blocks"),
        (choice("tpu", dtype="float16"), "blocks"),
    ],
    ids=str,
)
def test_what_auto_chooses(where, chosen):
    assert choose_attention("auto", where) is KERNELS[chosen].attend


def test_the_log_says_what_was_chosen_and_why(caplog):
    caplog.set_level(logging.INFO, logger="kvflow_jax")
    choose_attention("auto", choice("tpu", shape="llama-3.2-1b"))
    assert caplog.messages == [
        "attention tpu-ragged does not serve: head_dim 64 is not a multiple of 128",
        "attention on tpu: blocks",
    ]


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("flash", choice("cpu"), "no attention 'flash'; there are: auto, reference"),
        ("tpu-ragged", choice("cpu"), "'tpu-ragged' cannot be used: it runs on tpu, this is cpu"),
        ("tpu-ragged", choice("tpu", "smollm2-135m"), "head_dim 64 is not a multiple of 128"),
        ("tpu-ragged", choice("tpu", dtype="float16"), "not float16"),
        ("gpu-paged", choice("tpu"), "it runs on gpu, this is tpu"),
        ("gpu-mosaic", choice("cpu"), "it runs on gpu, this is cpu"),
        ("gpu-mosaic", choice("gpu", capability="8.9"), "compute capability 9, this is 8.9"),
        ("gpu-mosaic", choice("gpu", capability="10.0"), "compute capability 9, this is 10.0"),
        ("gpu-mosaic", choice("gpu", dtype="float32"), "not float32"),
        ("gpu-mosaic", choice("gpu", page_size=24), "page_size 24 is no power of two from 8 on"),
    ],
)
def test_a_kernel_that_was_asked_for_and_does_not_serve_is_an_error(name, where, message):
    with pytest.raises(ConfigError, match=message):
        choose_attention(name, where)


def test_the_command_line_knows_all_kernels():
    assert (AUTO, *KERNELS) == ATTENTIONS


def test_blocks_that_do_not_fit_shared_memory_are_declined():
    with pytest.raises(Declined, match="bytes of shared memory, of 232448"):
        gpu_mosaic.check(choice("gpu"), block_len=256, stages=2)


def test_a_kernel_asked_for_by_name():
    assert choose_attention("gpu-mosaic", choice("gpu")) is gpu_mosaic.attend
    assert choose_attention("gpu-paged", choice("gpu")) is gpu_paged.attend
    assert choose_attention("reference", choice("cpu")) is attention.attend_reference
