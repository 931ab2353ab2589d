"""D-NeAda is its transcription, at whatever step of a round it ends."""

import pytest

from experiments.minimax.rivals import METHODS, DNeAda
from kvflow_jax.errors import ConfigError
from tests.experiments.minimax.rivals import transcriptions


# Rounds have 2, 3, 4, ... steps, the last of which descends.
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 20, 23])
def test_it_is_its_transcription(agree, steps):
    rule = DNeAda(0.5, 0.7, 0.1)
    agree(METHODS["D-NeAda"], rule, transcriptions.neada, 0.1, steps=steps)


def test_stepsizes_are_checked():
    with pytest.raises(ConfigError, match="gamma_y must be positive and finite, not 0"):
        DNeAda(gamma_y=0)
