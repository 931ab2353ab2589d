"""Decode attention in Pallas on Triton, run by JAX's interpreter."""

from functools import partial

import numpy as np
import pytest

from kvflow_jax.models import attention
from kvflow_jax.models.kernels import gpu_paged
from tests.models.kernels.batches import (
    MIXED,
    RAGGED,
    RaggedBatch,
    attend_with_window,
    in_dtype,
    with_nan_past_contexts,
)
from tests.support.tiers import slow_except

GPU = partial(gpu_paged.attend, interpret=True)


@pytest.mark.parametrize(
    ("heads", "page_size", "ragged", "window"),
    slow_except(
        [
            *(((6, 2, 32), 16, ragged, 0) for ragged in RAGGED),
            *(((6, 2, 32), 16, "mixed", window) for window in (1, 70, 1000)),
            ((4, 4, 16), 1, "decode only", 30),
            ((9, 3, 64), 7, "mixed", 0),
            ((20, 1, 128), 128, "mixed", 100),
        ],
        ((6, 2, 32), 16, "mixed", 0),
        ((6, 2, 32), 16, "mixed", 70),
        ((4, 4, 16), 1, "decode only", 30),
    ),
    ids=str,
)
def test_it_equals_the_reference(heads, page_size, ragged, window):
    batch = with_nan_past_contexts(RaggedBatch(heads, page_size, **RAGGED[ragged], tile=40))
    expected, expected_pool = attend_with_window(batch, attention.attend_reference, window)
    out, pool = attend_with_window(batch, GPU, window)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-2), ("float16", 6e-3)])
def test_low_precision_stays_within_its_tolerance(dtype, tolerance):
    batch = in_dtype(RaggedBatch((6, 2, 64), 16, **MIXED, tile=40), dtype)
    expected, _ = attend_with_window(batch, attention.attend_reference)
    out, _ = attend_with_window(batch, GPU)
    np.testing.assert_allclose(out, expected, atol=tolerance)
