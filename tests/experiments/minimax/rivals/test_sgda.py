"""D-SGDA is its transcription."""

import pytest

from experiments.minimax.rivals import DSGDA, METHODS
from kvflow_jax.errors import ConfigError
from tests.experiments.minimax.rivals import transcriptions


def test_it_is_its_transcription(agree):
    agree(METHODS["D-SGDA"], DSGDA(0.03, 0.2), transcriptions.sgda)


def test_stepsizes_are_checked():
    with pytest.raises(ConfigError, match="gamma_x must be positive and finite, not -1"):
        DSGDA(-1.0)
