"""DM-HSGD is its transcription; with weight 1 it is gradient tracking."""

import numpy as np
import pytest

from experiments.minimax.rivals import DMHSGD, GTDA, METHODS
from kvflow_jax.errors import ConfigError
from tests.experiments.minimax.rivals import transcriptions
from tests.experiments.minimax.rivals.conftest import FourNodes


def test_it_is_its_transcription(agree):
    rule = DMHSGD(0.03, 0.2, 0.2, 0.4)
    agree(METHODS["DM-HSGD"], rule, transcriptions.hsgd, 0.2, 0.4)


def test_without_memory_it_is_gradient_tracking():
    problem = FourNodes()
    ours = problem.play(METHODS["DM-HSGD"], DMHSGD(0.03, 0.2, 1.0, 1.0), None)
    theirs = problem.play(METHODS["GT-DA"], GTDA(0.03, 0.2), None)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_x": 0.0}, r"weight_x must be in \(0, 1\], not 0"),
        ({"weight_y": 1.5}, r"weight_y must be in \(0, 1\], not 1.5"),
        ({"gamma_x": 0.0}, "gamma_x must be positive"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        DMHSGD(**fields)
