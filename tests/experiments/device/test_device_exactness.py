"""Tokens of cold and of cached prompts are compared, and what differs is told."""

import jax
import pytest

from experiments.device import device_exactness


@pytest.mark.slow
def test_tokens_do_not_depend_on_the_cache_here():
    figures, problems = device_exactness.exactness(jax.devices()[0], "float32", "blocks")
    assert problems == []
    assert figures["exactness.blocks.tokens_from_host"] > 0


def test_exactness_reports_what_differs(monkeypatch):
    cold, other = [[[1, 2]]], [[[1, 3]]]
    rounds = iter([(cold, {}), (other, {"cached": 4, "host": 0})])
    monkeypatch.setattr(device_exactness, "_rounds", lambda *args, **options: next(rounds))
    _, problems = device_exactness.exactness(jax.devices()[0], "float32", "auto")
    assert problems == [
        "exactness: 1 tokens depend on the cache",
        "exactness: no block was loaded from the host, so nothing is checked",
    ]
