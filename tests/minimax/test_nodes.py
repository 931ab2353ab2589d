"""Runs of all nodes step alike on one device and on a mesh, and say why they end."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kvflow_jax.errors import ConfigError, DivergenceError
from kvflow_jax.minimax.dadast import DAdaST
from kvflow_jax.minimax.graphs import exponential, from_matrix, full, ring
from kvflow_jax.minimax.nodes import observe_accumulators, over_axis, over_mesh, replicate
from tests.minimax import reference

NUM_NODES = 5
KEYS = jax.random.split(jax.random.key(0), NUM_NODES)
RULE = DAdaST(0.1, 0.2)


def problem(num_nodes=NUM_NODES):
    rng = np.random.default_rng(3)
    a, b, c, d = rng.normal(size=(4, num_nodes))
    return reference.Bilinear(a, 2 + b, c, d, np.ones(num_nodes))


def gradients(data, x, y, key):
    """Of one node with x, y f[1]."""
    return reference.gradients(data, x, y)


def noisy_gradients(data, x, y, key):
    noise_x, noise_y = jax.random.normal(key, (2, 1))
    grad_x, grad_y = reference.gradients(data, x, y)
    return grad_x + noise_x, grad_y + noise_y


def start(num_nodes=NUM_NODES):
    return jnp.ones((num_nodes, 1)), -jnp.ones((num_nodes, 1))


def runner(gradients=gradients, graph=None, **changes):
    arguments = {"steps": 20, "observe": observe_accumulators} | changes
    return over_axis(RULE, graph or ring(NUM_NODES), gradients, **arguments)


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


PATH = np.eye(NUM_NODES, k=1) / 3 + np.eye(NUM_NODES, k=-1) / 3
PATH += np.diag(1 - PATH.sum(1))


@pytest.mark.parametrize("graph", [ring(5), exponential(5), full(5), from_matrix(PATH, "path")])
def test_nodes_step_as_the_reference(graph):
    data = problem()

    def all_gradients(x, y):
        return tuple(one[:, None] for one in reference.gradients(data.arrays, x[:, 0], y[:, 0]))

    begin = [np.asarray(one, np.float64) for one in start()]
    expected = reference.run(RULE, graph.weights, all_gradients, *begin, 20)
    _, seen = runner(
        graph=graph, observe=lambda state: (state.x, state.y, state.accum_x, state.accum_y)
    )(data.arrays, *start(), KEYS)
    for ours, theirs in zip(seen, expected, strict=True):
        np.testing.assert_allclose(np.swapaxes(ours, 0, 1), theirs, rtol=1e-4, atol=1e-5)


def test_accumulators_sum_to_what_all_nodes_have_seen():
    run = runner(noisy_gradients, steps=30, every=1, observe=lambda state: (state.x, state.y))
    data = problem().arrays
    final, (xs, ys) = run(data, *start(), KEYS)
    x, y = start()
    xs, ys = jnp.concatenate([x[:, None], xs], 1), jnp.concatenate([y[:, None], ys], 1)
    sum_x = sum_y = 0.0
    for k in range(30):
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, k)
        grad_x, grad_y = jax.vmap(noisy_gradients)(data, xs[:, k], ys[:, k], keys)
        sum_x += float((grad_x**2).sum())
        sum_y += float((grad_y**2).sum())
    assert float(final.accum_x.sum()) == pytest.approx(NUM_NODES * RULE.start + sum_x, rel=1e-4)
    assert float(final.accum_y.sum()) == pytest.approx(NUM_NODES * RULE.start + sum_y, rel=1e-4)


def test_nodes_with_the_same_data_stay_equal_bit_for_bit():
    data = replicate(tuple(array[0] for array in problem().arrays), NUM_NODES)
    final, seen = runner()(data, *start(), KEYS)
    for leaf in jax.tree.leaves((final, seen)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_tracking_brings_the_stepsizes_of_unlike_nodes_together():
    run = runner(steps=2_000, every=1_000)
    _, (accum_x, accum_y) = run(problem().arrays, *start(), KEYS)
    for accumulators in (accum_x, accum_y):
        assert np.ptp(accumulators[:, -1]) < 1e-2 * np.mean(accumulators[:, -1])


def test_observations_are_of_every_so_many_steps():
    each = runner(every=1)(problem().arrays, *start(), KEYS)
    some = runner(every=5)(problem().arrays, *start(), KEYS)
    assert each[1][0].shape == (NUM_NODES, 20)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:, 4::5], each[1]), some[1])
    assert_same_bits(each[0], some[0])


def test_a_run_resumed_has_the_bits_of_one_run():
    data = problem().arrays
    whole, seen = runner(noisy_gradients)(data, *start(), KEYS)
    half = runner(noisy_gradients, steps=10)
    first, seen_first = half(data, *start(), KEYS)
    second, seen_second = half.resume(data, first, KEYS)
    assert_same_bits(whole, second)
    joined = [jnp.concatenate(pair, 1) for pair in zip(seen_first, seen_second, strict=True)]
    assert_same_bits(seen, tuple(joined))
    assert (second.step == 20).all()


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    data = problem().arrays
    half = runner(noisy_gradients, steps=10)
    state, _ = half(data, *start(), KEYS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    assert_same_bits(half.resume(data, restored, KEYS), half.resume(data, state, KEYS))


def test_keys_decide_the_noise():
    data = problem().arrays
    run = runner(noisy_gradients)
    one, _ = run(data, *start(), KEYS)
    other, _ = run(data, *start(), jax.random.split(jax.random.key(1), NUM_NODES))
    assert not np.array_equal(one.x, other.x)


def test_a_mesh_of_one_device_is_one_node():
    mesh = jax.make_mesh((1,), ("node",), devices=jax.devices()[:1])
    arguments = {"steps": 20, "observe": observe_accumulators}
    inputs = (problem(1).arrays, *start(1), KEYS[:1])
    on_mesh = over_mesh(RULE, ring(1), noisy_gradients, mesh=mesh, **arguments)(*inputs)
    on_axis = over_axis(RULE, ring(1), noisy_gradients, **arguments)(*inputs)
    for one, other in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(on_axis), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_step_as_one_device_does():
    flag = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.minimax.mesh_steps"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_a_gradient_that_is_not_finite_names_the_node_and_the_step(value):
    data = jnp.arange(NUM_NODES)

    def gradients(node, x, y, key):
        is_bad = (node == 3) & (y[0] >= 7)
        return jnp.where(is_bad, value, 0.0) * x, jnp.ones_like(y)

    # From so large a start y grows by a little less than 1 a step.
    rule = DAdaST(1.0, 1e3**0.4, start=1e3)
    run = over_axis(rule, ring(NUM_NODES), gradients, steps=20, observe=observe_accumulators)
    x, y = jnp.ones((NUM_NODES, 1)), jnp.zeros((NUM_NODES, 1))
    with pytest.raises(DivergenceError, match="gradients of node 3 at step 8 are not finite"):
        run(data, x, y, KEYS)


def test_sums_of_finite_squares_that_overflow_are_an_error():
    def gradients(node, x, y, key):
        return 1e19 + 0 * x, -y

    run = over_axis(RULE, ring(NUM_NODES), gradients, steps=6)
    with pytest.raises(DivergenceError, match="at step 4 are not finite, or too large"):
        run(jnp.arange(NUM_NODES), *start(), KEYS)


def test_leaves_without_the_leading_axis_are_named():
    run, data = runner(), problem().arrays
    x, y = start()
    with pytest.raises(ConfigError, match=r"x\['w'\] has shape \(4, 1\).* length 5.* 'ring'"):
        run(data, {"w": x[:4]}, y, KEYS)
    with pytest.raises(ConfigError, match=r"y has shape \(\)"):
        run(data, x, 1.0, KEYS)
    with pytest.raises(ConfigError, match=r"data\[2\] has shape \(6,\)"):
        run((data[0], data[1], np.ones(6)), x, y, KEYS)
    with pytest.raises(ConfigError, match=r"keys has shape \(\)"):
        run(data, x, y, jax.random.key(0))


@pytest.mark.parametrize("returned", [1.0, (1.0, 1.0, 1.0)])
def test_gradients_that_are_no_pair_are_refused(returned):
    run = runner(lambda data, x, y, key: jax.tree.map(lambda one: one * x, returned))
    with pytest.raises(ConfigError, match="gradients must return a pair"):
        run(problem().arrays, *start(), KEYS)


def test_a_gradient_can_be_a_plain_number():
    x, y = jnp.ones(NUM_NODES), jnp.ones(NUM_NODES)
    runs = [runner(lambda _, x, y, key, one=one: (x, one)) for one in (-2.0, jnp.float32(-2))]
    assert_same_bits(*(run(KEYS, x, y, KEYS) for run in runs))


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (5, 2), (5, 0), (-4, 2)])
def test_steps_are_a_positive_multiple_of_every(steps, every):
    with pytest.raises(ConfigError, match=f"steps = {steps}, every = {every}"):
        runner(steps=steps, every=every)


def test_a_mesh_has_one_axis():
    mesh = jax.make_mesh((1, 1), ("a", "b"), devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"'ring' has 5 nodes and the mesh is \{'a': 1, 'b': 1\}"):
        over_mesh(RULE, ring(5), gradients, mesh=mesh, steps=1)


@pytest.mark.parametrize("mesh_axis", ["device", "nodes"])  # over_axis has an axis "nodes", too
@pytest.mark.parametrize(
    "graph", [ring(5), from_matrix(PATH, "path")], ids=lambda graph: graph.name
)
def test_a_device_can_have_several_nodes(graph, mesh_axis):
    mesh = jax.make_mesh((1,), (mesh_axis,), devices=jax.devices()[:1])
    inputs = (problem().arrays, *start(), KEYS)
    arguments = {"steps": 20, "observe": observe_accumulators}
    on_mesh = over_mesh(RULE, graph, noisy_gradients, mesh=mesh, **arguments)(*inputs)
    on_axis = over_axis(RULE, graph, noisy_gradients, **arguments)(*inputs)
    for one, other in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(on_axis), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_nothing_is_observed_unless_asked():
    final, seen = runner(observe=None)(problem().arrays, *start(), KEYS)
    assert seen == ()
    assert int(final.step[0]) == 20
