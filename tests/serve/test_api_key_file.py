from __future__ import annotations

from pathlib import Path

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.serve import api_key_file
from kvflow_jax.serve.api_key_file import ApiKeyFile
from kvflow_jax.serve.auth import digest_of

GOOD = f"""
[classes.batch]
max_priority = -1
tokens_per_minute = 200_000

[[keys]]
name = "red"
key = "secret-red"
class = "batch"
max_n = 4

[[keys]]
name = "red"  # the tenant's next key
sha256 = "{digest_of(b"next").hex().upper()}"

[[keys]]
name = "ops"
key = "secret-ops"
class = "admin"
"""


def read(tmp_path: Path, text: str) -> ApiKeyFile:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return ApiKeyFile(path)


def test_a_file_gives_keys_names_classes_and_quotas(tmp_path: Path) -> None:
    red, following, ops = read(tmp_path, GOOD).read()
    assert (red.digest, red.tenant) == (digest_of(b"secret-red"), "red")
    assert (red.limits.max_priority, red.limits.tokens_per_minute) == (-1, 200_000)
    assert (red.limits.max_n, red.limits.is_admin) == (4, False)
    assert (following.digest, following.tenant) == (digest_of(b"next"), "red")
    assert (ops.tenant, ops.limits.is_admin) == ("ops", True)


def key(**fields: object) -> str:
    entry = {"name": "a", "key": "SECRET", **fields}
    lines = [f"{name} = {value!r}" for name, value in entry.items() if value is not None]
    return "\n".join(["[[keys]]", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no"),
        ("keys = 3", "it has no"),
        ('[[keys]\nkey = "SECRET"', "not valid TOML"),
        ('key = "SECRET', "not valid TOML"),
        ("[[users]]", "unknown table 'users'"),
        ("classes = 3\n" + key(), "classes must be tables"),
        ("[classes]\nbatch = 3\n" + key(), "class 'batch' must be a table"),
        ("[classes.batch]\nmax_m = 3\n" + key(), "class 'batch': unknown field 'max_m'"),
        ("keys = [3]", "entry 1: it must be a table"),
        (key(name=None), "entry 1: name must be"),
        (key(name="a:b"), "entry 1: name must be"),
        (key(key=None), "'a' must have either key or sha256"),
        (key(sha256="0" * 64), "'a' must have either key or sha256"),
        (key(key=" "), "key of 'a' must be text"),
        (key(key=3), "key of 'a' must be text"),
        (key(key=None, sha256="SECRET"), "sha256 of 'a' must be 64 hexadecimal digits"),
        (key(**{"class": "gold"}), "class of 'a' must be one of default, admin, got 'gold'"),
        (key(max_n=0), "'a': max_n must be an integer of at least 1"),
        (key() + "\n" + key(name="b"), "entry 2: the key was given before"),
        ("a = " + "[" * 100_000, "cannot be used"),
        ("a = " + "9" * 5_000, "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line_that_shows_no_key(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, text).read()
    assert "keys.toml cannot be used" in str(error.value)
    assert "\n" not in str(error.value)
    assert "SECRET" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ApiKeyFile(tmp_path / "none.toml").read()
    with pytest.raises(ConfigError, match="directory"):
        ApiKeyFile(tmp_path).read()
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ApiKeyFile(tmp_path / "bytes").read()


def test_a_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_key_file, "MAX_FILE_BYTES", 1 << 6)
    with pytest.raises(ConfigError, match="larger than"):
        read(tmp_path, GOOD).read()


def test_another_file_under_the_name_is_a_change(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)
    file.read()
    assert not file.has_changed()
    (tmp_path / "new").write_text(GOOD)
    (tmp_path / "new").replace(file.path)
    assert file.has_changed()
    file.read()
    file.path.unlink()
    assert file.has_changed()
    file.note_seen()
    assert not file.has_changed()
