"""Logits equal those of torch and transformers in reference.npz (see make_reference.py)."""

import numpy as np
import pytest

from kvflow_jax.models.loading.load import load_model
from tests.models import tiny
from tests.models.make_reference import (
    FILE,
    GREEDY_PROMPT,
    LONGROPE,
    NUM_GREEDY,
    NUM_TOKENS,
    ORIGINAL_LEN,
    POSITIONS,
)
from tests.support.tiers import slow_except

REFERENCE = np.load(FILE)
TOLERANCE = 1e-3


@pytest.mark.parametrize("name", slow_except(tiny.CONFIGS, "tied-gqa", "qwen3-moe", "gemma3"))
def test_tiny_models_equal_transformers(name, tmp_path):
    folder = tiny.write_folder(tmp_path / name, tiny.CONFIGS[name])
    loaded = load_model(str(folder), progress=False)
    tokens = tiny.prompt_tokens(NUM_TOKENS)

    cold = tiny.Sequence(loaded.model, loaded.params, NUM_TOKENS).feed(tokens)
    np.testing.assert_allclose(cold[POSITIONS], REFERENCE[name], atol=TOLERANCE)

    # A cached prefix, a padded chunk that continues it, then tokens one at a time.
    sequence = tiny.Sequence(loaded.model, loaded.params, GREEDY_PROMPT + NUM_GREEDY, page_size=8)
    pieces = [sequence.feed(tokens[:33], 40), sequence.feed(tokens[33:60], 40)]
    pieces += [sequence.feed([token]) for token in tokens[60:]]
    np.testing.assert_allclose(np.concatenate(pieces), cold, atol=TOLERANCE)

    # Greedy tokens, up to the first step whose top two logits are within the tolerance.
    sequence.len = 0
    logits = sequence.feed(tokens[:GREEDY_PROMPT], 40)[-1]
    for expected in REFERENCE[f"{name}_greedy"]:
        second, first = np.sort(logits)[-2:]
        if first - second < TOLERANCE:
            break
        assert logits.argmax() == expected
        logits = sequence.feed([expected])[0]


def test_the_served_length_selects_the_factors_of_longrope(tmp_path, caplog):
    """Up to the original length short factors, as in transformers; beyond it long ones for all."""
    folder = tiny.write_folder(tmp_path / "model", tiny.CONFIGS[LONGROPE])
    tokens = tiny.prompt_tokens(NUM_TOKENS)

    def warnings():
        # transformers has a warning of its own, once a process.
        ours = [record for record in caplog.records if record.name.startswith("kvflow_jax")]
        return [record.getMessage() for record in ours if record.levelname == "WARNING"]

    def logits(max_model_len):
        loaded = load_model(str(folder), max_model_len=max_model_len, progress=False)
        assert loaded.config.max_model_len == tiny.CONFIGS[LONGROPE]["max_position_embeddings"]
        return tiny.Sequence(loaded.model, loaded.params, NUM_TOKENS).feed(tokens)

    short = logits(ORIGINAL_LEN)[:ORIGINAL_LEN]
    np.testing.assert_allclose(short, REFERENCE[f"{LONGROPE}_short"], atol=TOLERANCE)
    assert not warnings()
    long = logits(ORIGINAL_LEN + 1)
    np.testing.assert_allclose(long[POSITIONS], REFERENCE[LONGROPE], atol=TOLERANCE)
    assert np.abs(long[:ORIGINAL_LEN] - short).max() > TOLERANCE
    (message,) = warnings()
    assert "long factors" in message
    assert "--max-model-len) to 32 or less" in message


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
    tokens = tiny.prompt_tokens(NUM_TOKENS)
    loaded = load_model(str(folder), dtype=dtype, progress=False)
    assert {str(weight.dtype) for weight in loaded.params.values()} == {dtype}
    sequence = tiny.Sequence(loaded.model, loaded.params, NUM_TOKENS, pool_dtype=dtype)
    logits = sequence.feed(tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[POSITIONS], REFERENCE["tied-gqa"], atol=tolerance)
