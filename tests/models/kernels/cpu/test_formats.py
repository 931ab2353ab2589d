"""Matrices in the panels of the CPU kernels."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.kernels.cpu.formats import BFloat16Format, Float32Format, Int8Format

FORMATS = {"float32": Float32Format(24), "bfloat16": BFloat16Format(), "int8": Int8Format()}
SHAPES = [(1, 1), (7, 24), (64, 100), (577, 48)]


def matrix(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_columns_are_read_back(name, shape):
    form, weight = FORMATS[name], matrix(shape)
    columns = np.arange(shape[1] + 2).clip(max=shape[1] - 1)
    found = form.column(jnp.asarray(form.pack(weight)), jnp.asarray(columns), shape[0])
    # Half a unit of the last place; half a step of 1/127 of the peak of a column.
    bound = {"float32": 0, "bfloat16": 2**-8, "int8": 0.51 / 127}[name]
    peak = np.abs(weight).max(axis=0)
    assert (np.abs(found - weight.T[columns]) <= bound * peak[columns, None]).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_numpy_and_jax_are_packed_alike(name, shape):
    packed, traced = (FORMATS[name].pack(make(matrix(shape))) for make in (np.array, jnp.asarray))
    assert isinstance(packed, np.ndarray)
    assert (packed.shape, packed.dtype) == (traced.shape, traced.dtype)
    # XLA divides otherwise: a value halfway between two steps may be rounded to the other one.
    if name != "int8":
        np.testing.assert_array_equal(packed, traced)
    elif packed.size:
        steps = packed[:, :-2].astype(int) - np.asarray(traced)[:, :-2].astype(int)
        assert np.abs(steps).max() <= 1
        assert (steps != 0).mean() < 0.01


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found(name, bad):
    form, weight = FORMATS[name], matrix((70, 50))
    assert np.isfinite(form.floats(form.pack(weight)).astype(np.float32)).all()
    weight[33, 41] = bad
    assert not np.isfinite(form.floats(form.pack(weight)).astype(np.float32)).all()


def test_a_column_of_zeros_has_no_scale():
    weight = matrix((8, 3))
    weight[:, 1] = 0
    form = FORMATS["int8"]
    found = form.column(jnp.asarray(form.pack(weight)), jnp.arange(3), 8)
    np.testing.assert_array_equal(found[1], np.zeros(8))


def test_int8_takes_a_quarter_of_the_memory():
    weight = matrix((576, 3072))
    assert FORMATS["int8"].pack(weight).nbytes < 0.26 * weight.nbytes
