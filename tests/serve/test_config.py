from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from kvflow_jax.serve.config import ServerConfig


def test_the_repr_of_a_config_contains_no_api_key() -> None:
    assert "sesame" not in repr(ServerConfig(api_keys=("sesame",)))


def test_the_body_limit_is_given_in_mib() -> None:
    assert ServerConfig(max_body_mib=0.5).max_body_bytes == 512 * 1024


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ServerConfig().port = 1
