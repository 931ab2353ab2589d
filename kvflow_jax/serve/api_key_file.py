"""The file of API keys: TOML with classes of tenants, and keys with their names.

[classes.batch]
max_priority = -1
tokens_per_minute = 200_000

[[keys]]
name = "team-red"
key = "sk-..."            # or sha256 = its digest in hexadecimal digits
class = "batch"           # default: "default"
max_pending = 64          # fields of its class, for this key
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.auth import ApiKey, digest_of
from kvflow_jax.serve.tenant_limits import TenantLimits

MAX_FILE_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

_Signature = tuple[int, int, int]  # inode, size, time of the last change in ns


class ApiKeyFile:
    """A file of API keys that may change while the server runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signature: _Signature | None = None
        self._was_read = False

    def read(self) -> list[ApiKey]:
        """Return the keys of the file.

        The first read may be of a pipe, such as of a secret store. Later ones refuse it: they
        wait for no writer.

        Raises:
            ConfigError: the file cannot be read, or an entry is wrong; one line that names it and
                shows no key.
        """
        try:
            self._signature = self._stat()
            with open(self.path, "rb", opener=self._open) as file:
                if self._was_read and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigError("it is no regular file")
                data = file.read(MAX_FILE_BYTES + 1)
            self._was_read = True
            if len(data) > MAX_FILE_BYTES:
                raise ConfigError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            return _keys_of(tomllib.loads(data.decode()))
        except OSError as error:
            reason = error.strerror or str(error)
        except tomllib.TOMLDecodeError as error:
            # The message may quote the file: only its end says where.
            where = re.search(r"\(at [^()]*\)$", str(error))
            reason = f"it is not valid TOML {where.group() if where else ''}".rstrip()
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        except RecursionError:
            reason = "it is nested too deeply"
        except ConfigError as error:
            reason = str(error)
        except ValueError:  # a number of thousands of digits
            reason = "it is not valid TOML"
        raise ConfigError(f"the API keys in {self.path} cannot be used: {reason}")

    def has_changed(self) -> bool:
        """Return whether the file is another than the one last read, or cannot be found now."""
        try:
            return self._stat() != self._signature
        except OSError:
            return self._signature is not None

    def note_seen(self) -> None:
        """Do not report the present state of the file as a change again."""
        try:
            self._signature = self._stat()
        except OSError:
            self._signature = None

    def _open(self, path: str, flags: int) -> int:
        # Without the flag, opening a pipe waits for a writer.
        return os.open(path, flags | (os.O_NONBLOCK if self._was_read else 0))

    def _stat(self) -> _Signature:
        status = os.stat(self.path)
        return status.st_ino, status.st_size, status.st_mtime_ns


def _keys_of(data: Mapping[str, object]) -> list[ApiKey]:
    unknown = sorted(set(data) - {"classes", "keys"})
    if unknown:
        raise ConfigError(f"unknown table {unknown[0]!r:.60}; known are classes, keys")
    classes = _classes_of(data.get("classes", {}))
    entries = data.get("keys", [])
    if not isinstance(entries, list) or not entries:
        raise ConfigError("it has no [[keys]]")
    keys: list[ApiKey] = []
    seen: set[bytes] = set()
    for i, entry in enumerate(entries, 1):
        try:
            key = _key_of(entry, classes)
            if key.digest in seen:
                raise ConfigError("the key was given before")
        except ConfigError as error:
            raise ConfigError(f"keys, entry {i}: {error}") from None
        seen.add(key.digest)
        keys.append(key)
    return keys


def _classes_of(data: object) -> dict[str, dict[str, object]]:
    # The fields of each class; a class of these names may be replaced.
    classes: dict[str, dict[str, object]] = {"default": {}, "admin": {"is_admin": True}}
    if not isinstance(data, dict):
        raise ConfigError("classes must be tables, such as [classes.batch]")
    for name, fields in data.items():
        if not isinstance(fields, dict):
            raise ConfigError(f"class {name!r:.60} must be a table")
        try:
            TenantLimits.of(fields)
        except ConfigError as error:
            raise ConfigError(f"class {name!r:.60}: {error}") from None
        classes[name] = fields
    return classes


def _key_of(entry: object, classes: Mapping[str, dict[str, object]]) -> ApiKey:
    if not isinstance(entry, dict):
        raise ConfigError("it must be a table, [[keys]]")
    fields = dict(entry)
    name, key = fields.pop("name", None), fields.pop("key", None)
    sha256, class_name = fields.pop("sha256", None), fields.pop("class", "default")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("name must be 1 to 64 letters, digits, '.', '_' or '-'")
    if (key is None) == (sha256 is None):
        raise ConfigError(f"'{name}' must have either key or sha256")
    if key is not None and (not isinstance(key, str) or not key.strip()):
        raise ConfigError(f"key of '{name}' must be text that is not empty")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ConfigError(f"sha256 of '{name}' must be 64 hexadecimal digits")
    if not isinstance(class_name, str) or class_name not in classes:
        raise ConfigError(
            f"class of '{name}' must be one of {', '.join(classes)}, got {class_name!r:.60}"
        )
    try:
        limits = TenantLimits.of({**classes[class_name], **fields})
    except ConfigError as error:
        raise ConfigError(f"'{name}': {error}") from None
    if isinstance(sha256, str):
        return ApiKey(bytes.fromhex(sha256), name, limits)
    return ApiKey(digest_of(str(key).strip().encode()), name, limits)
