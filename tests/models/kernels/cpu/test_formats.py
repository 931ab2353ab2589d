"""Matrices in the panels of the CPU kernels."""

from functools import cache

import gguf
import jax
import numpy as np
import pytest

from kvflow_jax.models.kernels.cpu.formats import (
    BFloat16Format,
    Float32Format,
    GroupedFormat,
    floats,
)
from tests.models.tiny_gguf import quantised

FORMATS = {
    form.kernel(33): form
    for form in (Float32Format(24), BFloat16Format(), GroupedFormat(8), GroupedFormat(4))
}
SHAPES = [(1, 1), (7, 24), (64, 100), (577, 48)]


@cache
def jitted(method, static_argnums=()):
    """Return one program of an operation, which JAX else compiles as many small ones."""
    return jax.jit(method, static_argnums=static_argnums)


def columns_of(form, packed, columns, num_in):
    return jitted(form.column, 2)(packed, np.asarray(columns), num_in)


def matrix(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_columns_are_read_back(name, shape):
    form, weight = FORMATS[name], matrix(shape)
    columns = np.arange(shape[1] + 2).clip(max=shape[1] - 1)
    found = columns_of(form, form.pack(weight), columns, shape[0])
    # Half a unit of the last place; half a step, of 127 from zero or of 15 over the range.
    bound = {"float32": 0, "bfloat16": 2**-8, "int8": 0.51 / 127, "int4": 1.02 / 15}[name]
    peak = np.abs(weight).max(axis=0)
    assert (np.abs(found - weight.T[columns]) <= bound * peak[columns, None]).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_numpy_and_jax_are_packed_alike(name, shape):
    pack, weight = FORMATS[name].pack, matrix(shape)
    packed, traced = pack(weight), jitted(pack)(weight)
    assert isinstance(packed, np.ndarray)
    assert (packed.shape, packed.dtype) == (traced.shape, traced.dtype)
    # XLA divides otherwise: a scale, and a value between two steps, may be rounded otherwise.
    assert (packed != np.asarray(traced)).mean() <= (0.01 if packed.dtype == np.uint8 else 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found(name, bad):
    form, weight = FORMATS[name], matrix((70, 50))
    assert np.isfinite(floats(form.pack(weight)).astype(np.float32)).all()
    weight[33, 41] = bad
    assert not np.isfinite(floats(form.pack(weight)).astype(np.float32)).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_column_of_one_value_is_exact(name):
    form, weight = FORMATS[name], matrix((40, 3))
    weight[:, 1], weight[:, 2] = 0, 0.5
    found = columns_of(form, form.pack(weight), range(3), 40)
    np.testing.assert_array_equal(found[1], np.zeros(40))
    np.testing.assert_allclose(found[2], np.full(40, 0.5), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "stored", "tolerance"),
    [
        *(("int8", "Q8_0", 1e-6), ("int4", "Q4_1", 1e-6)),
        # Their scales are not in float16, or other multiples of one that is.
        *(("int8", "Q4_0", 1e-3), ("int8", "Q5_0", 1e-3)),
        *(("int4", "Q4_0", 1e-3), ("int4", "Q4_K", 2e-3)),
    ],
)
def test_values_of_a_gguf_file_are_kept(name, stored, tolerance):
    kind = gguf.GGMLQuantizationType[stored]
    weight = gguf.quants.dequantize(quantised(matrix((96, 256)), kind), kind).T
    form = FORMATS[name]
    found = columns_of(form, form.pack(weight), range(96), 256)
    np.testing.assert_allclose(found.T, weight, atol=tolerance * np.abs(weight).max())


def test_values_with_a_scale_for_each_column_are_kept():
    rng = np.random.default_rng(0)
    steps = rng.integers(-100, 101, (96, 40)).astype(np.float32)
    steps[7] = 127
    weight = steps * rng.random(40, np.float32)
    form = FORMATS["int8"]
    found = columns_of(form, form.pack(weight), range(40), 96)
    np.testing.assert_allclose(found.T, weight, rtol=1e-3)


@pytest.mark.parametrize(("name", "ratio"), [("int8", 8.5 / 32), ("int4", 5 / 32)])
def test_the_memory_is_that_of_the_bits_and_scales(name, ratio):
    weight = matrix((576, 3072))
    assert FORMATS[name].pack(weight).nbytes == ratio * weight.nbytes
