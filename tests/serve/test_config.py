from __future__ import annotations

from kvflow_jax.serve.config import ServerConfig


def test_the_repr_of_a_config_contains_no_api_key() -> None:
    assert "secret" not in repr(ServerConfig(api_keys=("secret",)))
