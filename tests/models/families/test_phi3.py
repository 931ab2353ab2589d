"""What is particular to Phi-3: LongRoPE, whose factors the served length selects."""

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.phi3 import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from tests.models import tiny
from tests.models.families.expected import (
    NUM_TOKENS,
    POSITIONS,
    PROMPT,
    TOKENS,
    TOLERANCE,
    Expected,
)

ORIGINAL_LEN = 32
_LONG = {
    **FAMILY.tiny,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": ORIGINAL_LEN,
    "max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
        "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
    },
}
VARIANTS = {
    "phi3-longrope": _LONG,
    # max_position_embeddings is the original length: the short factors.
    "phi3-shortrope": _LONG | {"original_max_position_embeddings": 128},
}
# transformers uses the short factors for prompts up to this length.
SHORT_PROMPTS = [("phi3-longrope", ORIGINAL_LEN)]

EXPECTED = {
    "phi3": Expected(
        logits=(
            (1.18898, -0.80019, -2.69787, 1.6813, -0.95838),
            (-0.9539, -0.15856, -0.46475, 3.19263, -0.14941),
            (0.79143, 1.28104, -0.32556, 0.95566, -0.60717),
            (-1.69383, -2.63304, 0.59268, 3.81129, -0.58444),
        ),
        greedy=(
            *(93, 42, 93, 42, 182, 258, 267, 45, 17, 45, 92, 12, 56, 255, 159, 52),
            *(140, 289, 250, 9, 152, 33, 83, 255, 73, 101, 73, 152, 187, 210, 218, 29),
        ),
    ),
    "phi3-longrope": Expected(
        logits=(
            (0.57116, 0.48518, -1.71923, 2.30024, 0.7165),
            (0.30029, -1.5391, -0.12593, 0.94283, -0.90409),
            (-0.57764, 1.11747, 0.44926, 0.73614, -0.02806),
            (-2.73294, -1.60207, 1.08646, 1.83861, -1.04592),
        ),
        greedy=(
            *(200, 293, 287, 85, 56, 119, 267, 216, 29, 58, 222, 185, 278, 52, 92, 91),
            *(98, 155, 218, 44, 9, 14, 255, 267, 244, 45, 42, 248, 258, 238, 206, 134),
        ),
    ),
    "phi3-shortrope": Expected(
        logits=(
            (0.61274, 0.58522, -0.87061, 1.54469, 0.63285),
            (-0.75806, -2.04398, 0.59221, 0.81647, -0.35378),
            (-0.36748, 0.57011, 0.74798, 0.5025, 0.53854),
            (-2.22187, -1.35384, 1.28758, 1.3489, -0.32464),
        ),
        greedy=(
            *(93, 165, 255, 52, 92, 166, 165, 17, 296, 292, 56, 275, 120, 296, 93, 165),
            *(52, 92, 219, 44, 9, 212, 92, 227, 210, 92, 45, 23, 45, 275, 216, 212),
        ),
    ),
    "phi3-longrope, 32 tokens": Expected(
        logits=(
            (0.60557, 0.91728, -1.16194, 1.79077, 0.45481),
            (-0.31092, -2.03787, 0.43985, 1.37497, -0.71687),
        ),
    ),
}


def test_yarn_is_an_old_name_of_longrope():
    scaling = _LONG["rope_scaling"] | {"type": "yarn"}
    assert read_config({**_LONG, "rope_scaling": scaling}) == read_config(_LONG)


def test_there_are_as_many_factors_as_frequencies():
    with pytest.raises(ModelLoadError, match="must have 8 positive numbers, found 6"):
        read_config({**_LONG, "partial_rotary_factor": 1.0})


def test_the_served_length_selects_the_factors_of_longrope(tmp_path, caplog):
    """Up to the original length short factors, as in transformers; beyond it long ones for all."""
    folder = tiny.write_folder(tmp_path / "model", _LONG)

    def warnings():
        # transformers has a warning of its own, once a process.
        ours = [record for record in caplog.records if record.name.startswith("kvflow_jax")]
        return [record.getMessage() for record in ours if record.levelname == "WARNING"]

    def logits(max_model_len):
        return tiny.logits_of(folder, PROMPT, max_model_len=max_model_len)

    short = logits(ORIGINAL_LEN)[:ORIGINAL_LEN]
    positions = [position for position in POSITIONS if position < ORIGINAL_LEN]
    expected = EXPECTED[f"phi3-longrope, {ORIGINAL_LEN} tokens"].logits
    np.testing.assert_allclose(short[np.ix_(positions, TOKENS)], expected, atol=TOLERANCE)
    assert not warnings()
    long = logits(ORIGINAL_LEN + 1)
    expected = EXPECTED["phi3-longrope"].logits
    np.testing.assert_allclose(long[np.ix_(POSITIONS, TOKENS)], expected, atol=TOLERANCE)
    assert np.abs(long[:ORIGINAL_LEN] - short).max() > TOLERANCE
    (message,) = warnings()
    assert "long factors" in message
    assert "--max-model-len) to 32 or less" in message


@pytest.mark.parametrize("max_model_len", [ORIGINAL_LEN, ORIGINAL_LEN + 1])
def test_the_factors_of_a_gguf_file_depend_on_the_served_length_too(max_model_len, tmp_path):
    tiny_gguf = pytest.importorskip("tests.models.tiny_gguf")
    path = tiny_gguf.write(tmp_path / "model.gguf", _LONG)
    folder = tiny.write_folder(tmp_path / "folder", _LONG)
    tokens = tiny.prompt_tokens(NUM_TOKENS)
    ours, theirs = (
        tiny.logits_of(each, tokens, max_model_len=max_model_len) for each in (path, folder)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    is_long = np.abs(ours - tiny.logits_of(path, tokens)).max() < 1e-4
    assert is_long == (max_model_len > ORIGINAL_LEN)
