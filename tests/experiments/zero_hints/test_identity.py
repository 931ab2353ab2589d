"""The cost of recognition is measured on real calls."""

from experiments.zero_hints.identity import identity_figures


def test_its_figures_are_of_calls_that_were_recognised():
    figures = identity_figures(num_calls=24)
    assert figures["identity_ms_per_request"] > 0
    assert 0 < figures["learned_bytes_per_agent"] < 1024
