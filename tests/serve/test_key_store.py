from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.key_store import KeyStore

RED = '[[keys]]\nname = "red"\nkey = "r"\n'
BLUE = '[[keys]]\nname = "blue"\nkey = "b"\nmax_n = 2\n'


def replace_file(path: Path, text: str) -> None:
    """Write a new file under the name, as editors and Kubernetes do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(RED)
    return path


def test_a_changed_file_is_in_force_without_a_restart(path: Path) -> None:
    store = KeyStore(ServerConfig(api_key_file=path, api_keys=("f",)))
    before = store.ring
    store.reload_if_changed()
    assert store.ring is before
    replace_file(path, BLUE)
    store.reload_if_changed()
    assert store.ring.authenticate(b"Bearer b") == "blue"
    assert store.ring.limits_of("blue").max_n == 2
    assert store.ring.authenticate(b"Bearer f")
    with pytest.raises(ApiError, match="invalid API key"):
        store.ring.authenticate(b"Bearer r")


@pytest.mark.parametrize("text", [None, "[[keys]]", "nonsense"])
def test_a_wrong_file_keeps_the_keys_in_force_and_is_logged_once(
    path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = KeyStore(ServerConfig(api_key_file=path))
    path.unlink() if text is None else replace_file(path, text)
    with caplog.at_level(logging.ERROR):
        store.reload_if_changed()
        store.reload_if_changed()
    assert store.ring.authenticate(b"Bearer r") == "red"
    (record,) = caplog.records
    assert "stay in force" in record.message
    replace_file(path, BLUE)
    store.reload_if_changed()
    assert store.ring.authenticate(b"Bearer b") == "blue"


def test_a_file_of_admins_only_still_requires_a_key(path: Path) -> None:
    replace_file(path, RED + 'class = "admin"\n')
    with pytest.raises(ApiError, match="API key is required"):
        KeyStore(ServerConfig(api_key_file=path)).ring.authenticate(None)


def test_a_wrong_file_at_start_is_an_error(path: Path) -> None:
    path.write_text("[[keys]]")
    with pytest.raises(ConfigError, match="name must be"):
        KeyStore(ServerConfig(api_key_file=path))


@pytest.mark.parametrize(
    ("config", "is_admin"),
    [
        ({"api_keys": ("a",)}, True),
        ({"api_keys": ("a", "b")}, False),
        ({"api_keys": ("a",), "admin_api_keys": ("b",)}, False),
        ({"admin_api_keys": ("a",)}, True),
    ],
)
def test_a_single_key_is_the_admins_unless_there_is_one(
    config: dict[str, tuple[str, ...]], is_admin: bool
) -> None:
    ring = KeyStore(ServerConfig(**config)).ring
    assert ring.limits_of(ring.authenticate(b"Bearer a")).is_admin == is_admin


def test_a_pipe_is_read_at_start_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, RED.encode())
    os.close(write_end)
    try:
        store = KeyStore(ServerConfig(api_key_file=Path(f"/dev/fd/{read_end}")))
        assert store.ring.authenticate(b"Bearer r") == "red"
    finally:
        os.close(read_end)
    store = KeyStore(ServerConfig(api_key_file=path))
    path.unlink()
    os.mkfifo(path)  # without a writer, for whom a server would wait
    store.reload_if_changed()
    assert "it is no regular file; the keys read before stay in force" in caplog.text
    assert store.ring.authenticate(b"Bearer r") == "red"
    replace_file(path, BLUE)
    store.reload_if_changed()
    assert store.ring.authenticate(b"Bearer b") == "blue"
