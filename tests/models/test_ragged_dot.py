"""The ragged product in blocks of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.ragged_dot import ragged_blocks


@pytest.mark.parametrize(
    "num_rows", [[16, 16], [0, 0, 5], [33, 0, 1, 15, 17, 0], [0, 0], [1], [70, 2]], ids=str
)
def test_every_run_of_rows_is_multiplied_by_its_own_matrix(num_rows):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sum(num_rows), 24), np.float32)
    weight = rng.standard_normal((len(num_rows), 24, 40), np.float32)
    matrix = np.repeat(np.arange(len(num_rows)), num_rows)
    expected = np.einsum("ri,rio->ro", x, weight[matrix])
    sizes = jnp.asarray(num_rows, jnp.int32)
    np.testing.assert_allclose(jax.jit(ragged_blocks)(x, weight, sizes), expected, atol=1e-4)
