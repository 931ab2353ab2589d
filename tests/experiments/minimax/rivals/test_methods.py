"""Every method runs by its name and keeps narrow parameters; the mean of all nodes is TiAda's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.rivals import METHODS, DTiAda, centralised
from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax import full, over_axis, ring


def gradients(shift, x, y, key):
    noise = 0.01 * jax.random.normal(key, y.shape, y.dtype)
    return {"w": 2 * y + x["w"] + shift}, 2 * x["w"] - y + noise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_method_runs_and_keeps_the_parameters_width(name, dtype):
    method = METHODS[name]
    run = over_axis(method.rule(0.01, 0.02), ring(4), method.adapt(gradients), steps=10)
    x, y = {"w": jnp.ones((4, 3), dtype)}, jnp.ones((4, 3), dtype)
    shift = jnp.arange(4, dtype=dtype)
    final, _ = run(shift, x, y, jax.random.split(jax.random.key(0), 4))
    x, y = method.point(final)
    assert x["w"].dtype == y.dtype == dtype
    assert not np.allclose(np.asarray(x["w"], np.float32), 1)
    assert not np.allclose(np.asarray(y, np.float32), 1)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_must_be_like_the_parameters(name):
    rule = METHODS[name].rule(1.0, 1.0)
    state = rule.init({"w": jnp.ones(2)}, jnp.ones(3))
    with pytest.raises(ConfigError, match="the gradient in x must be a tree like x"):
        rule.step(state, jnp.ones(2), jnp.ones(3), lambda message: message)


@pytest.mark.parametrize("name", METHODS)
def test_a_player_can_have_no_parameters_and_its_state_be_donated(name):
    method = METHODS[name]
    rule = method.rule(1.0, 1.0)
    step = jax.jit(
        lambda state: rule.step(state, state.x, state.y, lambda message: message), donate_argnums=0
    )
    state = rule.init({}, jnp.ones(3))
    y = method.point(step(step(state)))[1]
    assert (y > 1).all()


@pytest.mark.parametrize("name", METHODS)
def test_gradients_can_be_numbers(name):
    method = METHODS[name]
    run = over_axis(
        method.rule(0.1, 0.1), ring(4), method.adapt(lambda c, x, y, key: (0.5, 0)), steps=3
    )
    begin = jnp.ones(4)
    x, y = method.point(run((), begin, begin, jax.random.split(jax.random.key(0), 4))[0])
    assert (x < 1).all()
    assert (y == 1).all()


def test_the_start_of_accumulators_is_passed_on():
    assert METHODS["D-TiAda"].rule(1.0, 2.0, start=0.5) == DTiAda(1.0, 2.0, start=0.5)


def test_centralised_gradients_are_the_mean_of_all_nodes():
    shift = jnp.arange(4.0)

    def plain(shift, x, y, key):
        return 2 * y + x + shift, 2 * x - y

    run = over_axis(DTiAda(), full(1), centralised(plain), steps=20)
    begin, keys = jnp.ones(1), jax.random.split(jax.random.key(0), 1)
    final, _ = run(shift[None], begin, begin, keys)
    mean_run = over_axis(DTiAda(), full(1), plain, steps=20)
    expected, _ = mean_run(jnp.array([1.5]), begin, begin, keys)
    np.testing.assert_allclose(final.x, expected.x, rtol=1e-5)
    np.testing.assert_allclose(final.accum_y, expected.accum_y, rtol=1e-5)
