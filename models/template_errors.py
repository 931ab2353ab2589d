"""What went wrong in a chat template, and in which of its lines."""

from __future__ import annotations

import traceback

import jinja2

_FILES = ("<template>", "<unknown>")  # Jinja's names of a template that is no file


def describe_template_error(error: Exception) -> str:
    """Return the words of an error that rendering raised, with the line of the template."""
    words = str(error)
    if not isinstance(error, jinja2.TemplateError):
        # Python's words, such as 'city', may say little alone.
        words = f"{type(error).__name__}: {words}".rstrip(": ")
    line = _line_of(error)
    return words if line is None else f"{words} (line {line} of the template)"


def _line_of(error: Exception) -> int | None:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    # Jinja puts the lines of the template into the traceback; the last is the innermost.
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if _is_template(frame)]
    return lines[-1] if lines else None


def _is_template(frame: object) -> bool:
    code = getattr(frame, "f_code", None)
    return getattr(code, "co_filename", None) in _FILES
