"""D-AdaGrad is its transcription."""

import pytest

from experiments.minimax.rivals import METHODS, DAdaGrad
from kvflow_jax.errors import ConfigError
from tests.experiments.minimax.rivals import transcriptions


def test_it_is_its_transcription(agree):
    agree(METHODS["D-AdaGrad"], DAdaGrad(0.5, 0.7, 0.1), transcriptions.adagrad, 0.1)


def test_fields_are_checked():
    with pytest.raises(ConfigError, match="start must be finite and not negative, not -1"):
        DAdaGrad(start=-1.0)
