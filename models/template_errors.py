"""Describes errors of chat templates, with the line of the template."""

from __future__ import annotations

import traceback

import jinja2

_FILES = ("<template>", "<unknown>")  # Jinja's names of a template that is no file


def describe_template_error(error: Exception) -> str:
    """Return the message of an error that rendering raised, with the line of the template."""
    message = str(error)
    if not isinstance(error, jinja2.TemplateError):
        # Without its type a message such as 'city', of a KeyError, says little.
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    line = _line_of(error)
    return message if line is None else f"{message} (line {line} of the template)"


def _line_of(error: Exception) -> int | None:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    # Jinja puts the lines of the template into the traceback; the last is the innermost.
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename in _FILES
    ]
    return lines[-1] if lines else None
