"""A problem of four unlike nodes with noise, in JAX and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.minimax import ball, exponential, over_axis

NUM_NODES, STEPS = 4, 23
# Not symmetric: whether W or its transpose is applied makes a difference.
GRAPH = exponential(NUM_NODES)


class FourNodes:
    """f_i = x'A_i x/2 + x'B_i y - |y|^2/2, x in R^3, y in R^2, noise of step k added."""

    def __init__(self):
        rng = np.random.default_rng(0)
        square = rng.normal(size=(NUM_NODES, 3, 3))
        self.square = (square + square.transpose(0, 2, 1)).astype(np.float32)
        self.cross = rng.normal(size=(NUM_NODES, 3, 2)).astype(np.float32)
        self.noise_x = (0.1 * rng.normal(size=(NUM_NODES, STEPS + 1, 3))).astype(np.float32)
        self.noise_y = (0.1 * rng.normal(size=(NUM_NODES, STEPS + 1, 2))).astype(np.float32)
        self.x = rng.normal(size=(NUM_NODES, 3)).astype(np.float32)
        self.y = (0.3 * rng.normal(size=(NUM_NODES, 2))).astype(np.float32)
        # Step k of a node draws from fold_in(key, k): the noise's row is found by that key.
        self.keys = jax.random.split(jax.random.key(0), NUM_NODES)
        steps = jnp.arange(STEPS + 1)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        self.step_keys = jax.random.key_data(fold(self.keys, steps))

    def __call__(self, x, y, k):
        """Gradients at all nodes in NumPy, float64."""
        gx = np.einsum("nij,nj->ni", self.square, x) + np.einsum("nij,nj->ni", self.cross, y)
        gy = np.einsum("nij,ni->nj", self.cross, x) - y
        return gx + self.noise_x[:, k], gy + self.noise_y[:, k]

    def play(self, method, rule, project, steps=STEPS):
        """x and y of all nodes after a run of the rule."""

        def gradients(data, x, y, key):
            square, cross, noise_x, noise_y, step_keys = data
            k = jnp.argmax((step_keys == jax.random.key_data(key)).all(axis=1))
            return square @ x + cross @ y + noise_x[k], cross.T @ x - y + noise_y[k]

        data = self.square, self.cross, self.noise_x, self.noise_y, self.step_keys
        run = over_axis(rule, GRAPH, method.adapt(gradients), steps=steps, project=project)
        final, _ = run(data, self.x, self.y, self.keys)
        assert final.step.tolist() == [steps] * NUM_NODES
        return method.point(final)


def in_ball(y):
    """Project rows onto the ball of radius 1/2, in NumPy."""
    norm = np.linalg.norm(y, axis=1, keepdims=True)
    return y * np.minimum(1, 0.5 / norm)


@pytest.fixture
def agree():
    """Checks that a rule does what its transcription does, with and without a projection."""
    problem = FourNodes()

    def check(method, rule, transcription, *settings, steps=STEPS):
        for project, in_numpy in ((None, lambda y: y), (ball(0.5), in_ball)):
            ours = problem.play(method, rule, project, steps)
            theirs = transcription(
                problem,
                GRAPH.weights,
                problem.x.astype(np.float64),
                problem.y.astype(np.float64),
                steps,
                rule.gamma_x,
                rule.gamma_y,
                in_numpy,
                *settings,
            )
            for one, other in zip(ours, theirs, strict=True):
                assert one.dtype == np.float32
                np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)

    return check
