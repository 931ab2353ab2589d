"""An error of a template is told with its line."""

from __future__ import annotations

import jinja2
import pytest

from kvflow_jax.models.template_errors import describe_template_error

MACRO = "{% macro f(x) %}\n{{ x.a.b }}\n{% endmacro %}\n\n{{ f({}) }}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a\n{{ 1 / 0 }}", "ZeroDivisionError: division by zero (line 2 of the template)"),
        ("{{ x.y.z }}", "'x' is undefined (line 1 of the template)"),
        ("\n\n{{ [1]|dictsort }}", "(line 3 of the template)"),
        ("\n{% for %}", "(line 2 of the template)"),
        (MACRO, "(line 2 of the template)"),
        ("{% macro a() %}{{ a() }}{% endmacro %}\n{{ a() }}", "RecursionError: maximum recursion"),
    ],
)
def test_the_innermost_line_is_named(template: str, words: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        jinja2.Environment().from_string(template).render()
    assert words in describe_template_error(raised.value)


def test_an_error_from_elsewhere_has_no_line() -> None:
    assert describe_template_error(KeyError()) == "KeyError"
    assert describe_template_error(ValueError("no role")) == "ValueError: no role"
    assert describe_template_error(jinja2.TemplateError("no system role")) == "no system role"
