"""Reads a chat template from a file of its own, for models that have none or another one."""

from __future__ import annotations

import stat
from pathlib import Path

import jinja2

from kvflow_jax.errors import ConfigError
from kvflow_jax.models.template_budget import compile_chat_template

# The largest of known models, with tools and reasoning, have some 20 KB.
MAX_TEMPLATE_BYTES = 1 << 20


def read_chat_template(path: Path) -> str:
    """Return the Jinja template of a file.

    Raises:
        ConfigError: the file cannot be read, is too large or empty, or is no template; names the
            line.
    """
    try:
        # Opening a FIFO would block until a process writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"the chat template {path} is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the chat template {path} cannot be read: {reason}") from error
    if len(data) > MAX_TEMPLATE_BYTES:
        raise ConfigError(f"the chat template {path} is larger than {MAX_TEMPLATE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the chat template {path} is not UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError(f"the chat template {path} is empty")
    try:
        compile_chat_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template {path} is no Jinja template: {error.message}, line {error.lineno}"
        ) from error
    return text
