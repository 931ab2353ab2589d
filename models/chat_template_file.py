"""Reads a chat template from a file (``--chat-template``), in place of the model's own."""

from __future__ import annotations

from pathlib import Path

import jinja2

from kvflow_jax.errors import ConfigError
from kvflow_jax.models.regular_file import read_regular_file
from kvflow_jax.models.template_budget import check_chat_template

# The largest of known models, with tools and reasoning, have some 20 KB.
MAX_TEMPLATE_BYTES = 1 << 20


def read_chat_template(path: Path) -> str:
    """Return the Jinja template of a file.

    Raises:
        ConfigError: the file cannot be read, is too large or empty, or is no template; the message
            names the line of the error.
    """
    try:
        text = read_regular_file(path, MAX_TEMPLATE_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"the chat template {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the chat template {path} is not UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError(f"the chat template {path} is empty")
    try:
        check_chat_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template {path} is no Jinja template: {error.message}, line {error.lineno}"
        ) from error
    return text
