"""The API keys of a running server: of its flags, and of a file, read again when it changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.api_key_file import ApiKeyFile
from kvflow_jax.serve.auth import ApiKey, KeyRing
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.tenant_limits import ADMIN_LIMITS

logger = logging.getLogger("kvflow_jax.serve")


class KeyStore:
    """Holds the keys in force. One thread at a time reloads them.

    Attributes:
        ring: the keys; another object after a reload. Any thread may read it.

    Raises:
        ConfigError: the file cannot be used; one line.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._of_flags = [ApiKey.of(text) for text in config.api_keys]
        if len(config.api_keys) == 1 and not (config.admin_api_keys or config.api_key_file):
            # With one key there is one tenant, so that admin rights reach no other.
            self._of_flags = [replace(key, limits=ADMIN_LIMITS) for key in self._of_flags]
        self._of_flags += [ApiKey.of(text, ADMIN_LIMITS) for text in config.admin_api_keys]
        self._is_required = bool(config.api_keys or config.api_key_file)
        self._file = None if config.api_key_file is None else ApiKeyFile(Path(config.api_key_file))
        self.ring = self._read()

    def reload_if_changed(self) -> None:
        """Read the file again if it is another than before."""
        if self._file is not None and self._file.has_changed():
            self.reload()

    def reload(self) -> None:
        """Read the file again; keep the keys in force, and log why, if it cannot be used."""
        if self._file is None:
            return
        try:
            self.ring = self._read()
        except ConfigError as error:
            self._file.note_seen()
            logger.error("%s; the keys read before stay in force", error)
        else:
            logger.info("read the API keys in %s", self._file.path)

    def _read(self) -> KeyRing:
        of_file = [] if self._file is None else self._file.read()
        return KeyRing([*of_file, *self._of_flags], is_required=self._is_required)
