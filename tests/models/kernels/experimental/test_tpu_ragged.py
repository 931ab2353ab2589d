"""JAX's ragged paged attention for TPUs over the shared pool, run by JAX's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as tpu_kernel

from kvflow_jax.models import attention
from kvflow_jax.models.kernels.experimental import tpu_ragged
from tests.models.kernels.batches import (
    RAGGED,
    RaggedBatch,
    attend_with_window,
    with_nan_past_contexts,
)
from tests.support.tiers import slow_except


@pytest.fixture
def tpu_interpreter(monkeypatch):
    """Run TPU kernels on CPU, with NaN in unwritten memory and races of copies reported.

    The interpreter of JAX 0.10 supports neither reads of a reshaped buffer nor masked writes to a
    part of a buffer: two lines of JAX's kernel are replaced by operations that it supports.
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
    # Cached programs would still be interpreted.
    jax.clear_caches()


@pytest.mark.parametrize(
    ("heads", "page_size", "ragged", "window"),
    slow_except(
        [
            ((4, 2, 128), 16, "mixed", 0),
            ((4, 2, 128), 16, "mixed", 70),
            ((8, 1, 128), 64, "padding first", 0),
            ((2, 2, 256), 16, "tiles only", 3),
        ],
        ((4, 2, 128), 16, "mixed", 70),
    ),
    ids=str,
)
def test_it_equals_the_reference(tpu_interpreter, heads, page_size, ragged, window):
    batch = with_nan_past_contexts(RaggedBatch(heads, page_size, **RAGGED[ragged], tile=40))
    expected, expected_pool = attend_with_window(batch, attention.attend_reference, window)
    out, pool = attend_with_window(batch, tpu_ragged.attend, window)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_array_equal(pool, expected_pool)


def test_rows_are_split_over_calls_by_the_size_of_their_page_tables(tpu_interpreter, monkeypatch):
    batch = RaggedBatch((4, 2, 128), 16, decode=[5, 0, 90], tiles=[(20, 8), (0, 3)], tile=8)
    expected, _ = attend_with_window(batch, attention.attend_reference)
    pages_per_seq = batch.metadata.page_table.shape[1]
    monkeypatch.setattr(tpu_ragged, "TABLE_BYTES", 2 * 2 * 4 * pages_per_seq)
    out, _ = attend_with_window(batch, tpu_ragged.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)
