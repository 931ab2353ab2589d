"""The embedded model's logits equal those of transformers, in reference.npz; low precision."""

import numpy as np
import pytest

from kvflow_jax.models.loading.load import load_model
from tests.models import tiny
from tests.models.families.cases import EXPECTED
from tests.models.families.expected import NUM_TOKENS, POSITIONS, PROMPT, TOKENS, TOLERANCE
from tests.models.make_reference import FILE

REFERENCE = np.load(FILE)


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_embedded_model_equals_transformers(smollm2, prompt):
    tokens = REFERENCE[f"embedded_{prompt}_tokens"]
    top_ids = REFERENCE[f"embedded_{prompt}_top_ids"]
    expected = REFERENCE[f"embedded_{prompt}_top_logits"]

    def top_logits(logits):
        return np.take_along_axis(logits, top_ids, axis=-1)

    sequence = tiny.Sequence(smollm2.model, smollm2.params, len(tokens))
    cold = sequence.feed(tokens, 32)
    np.testing.assert_allclose(top_logits(cold), expected, atol=TOLERANCE)
    np.testing.assert_array_equal(cold.argmax(-1), top_ids[:, 0])

    sequence.len = 16  # the pool still has the whole prompt: continue after its first page
    warm = sequence.feed(tokens[16:], 32)
    np.testing.assert_allclose(warm, cold[16:], atol=TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.5), ("float16", 0.05)])
def test_low_precision_stays_within_its_tolerance(folder, dtype, tolerance):
    loaded = load_model(str(folder), dtype=dtype, progress=False)
    # The CPU kernels take matrices of bfloat16 as bits.
    dtypes = {str(weight.dtype) for weight in loaded.params.values()}
    assert dtypes in ({dtype}, {dtype, "uint16"})
    sequence = tiny.Sequence(loaded.model, loaded.params, NUM_TOKENS, pool_dtype=dtype)
    logits = sequence.feed(PROMPT)
    assert logits.dtype == np.float32
    compared = logits[np.ix_(POSITIONS, TOKENS)]
    np.testing.assert_allclose(compared, EXPECTED["llama"].logits, atol=tolerance)
