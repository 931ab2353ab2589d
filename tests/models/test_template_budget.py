"""Chat templates that loop, grow or wait without end."""

import os

import pytest
from jinja2 import Template
from transformers.utils import chat_template_utils

from kvflow_jax.models.template_budget import (
    TemplateBudgetError,
    check_chat_template,
    compile_bounded,
    template_budget,
)

COMPILE = chat_template_utils._cached_compile_jinja_template


def render(source, **values):
    with template_budget(max_passes=10_000):
        return compile_bounded(source, COMPILE).render(**values)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% endfor %}",
        "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}",
        "{% for i in range(300) %}{% for j in range(300) if false %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% for x in [[[]]] recursive %}{{ loop([x, x]) }}{{ loop([x, x]) }}{% endfor %}",
        "{% set n = namespace(s='x') %}"
        "{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}"
        "{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}"
        "{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
        "{% set n = namespace(s={}) %}{% for i in range(99) %}{% set n.s = dict(a=n.s, b=n.s) %}"
        "{% endfor %}{{ n.s }}",
        "{{ 'x' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ 10 ** 99999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'x' | indent(999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ [text] * 9999 | int }}{{ ([text] * 9999) | join }}",
        "{{ ''.join([text] * 9999) }}",
        "{{ text.replace('x', text) }}",
        "{{ text | replace('x', text) }}",
        "{% for i in range(9999) %}{{ text }}{% endfor %}",
        "{% macro f() %}{% for i in range(9999) %}{{ text }}{% endfor %}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_does_too_much_is_refused(source):
    with pytest.raises((TemplateBudgetError, RecursionError, OverflowError)):
        render(source, text="x" * 20_000, messages=[{"a": 1}])


@pytest.mark.parametrize("name", ["lipsum()", "cycler(1).next()", "''.__class__()"])
def test_what_no_chat_needs_is_not_there(name):
    with pytest.raises(Exception, match=r"undefined|unsafe"):
        render(f"{{{{ {name} }}}}")


def test_a_template_that_waits_ends_by_the_clock():
    times = iter([0.0] + [100.0] * 1000)
    with template_budget(max_s=1.0, clock=lambda: next(times) - 1e9):
        template = compile_bounded("{% for i in range(1000) %}{% endfor %}", COMPILE)
        with pytest.raises(TemplateBudgetError, match="too long"):
            template.render()


def test_a_chat_template_writes_what_it_wrote_without_a_budget():
    source = (
        "{%- macro call(c) %}<call>{{ c.name }}({{ c.args | tojson }})</call>{% endmacro -%}"
        "{% set ns = namespace(n=0, last=messages | length - 1) %}"
        "{% for m in messages if m.role != 'skip' %}"
        "{% if loop.first %}<s>{% endif %}{{ loop.index0 }}/{{ loop.length }} "
        "{{ m['role'] ~ ': ' + m.content.strip() | trim }}{% set ns.n = ns.n + 2 * loop.index %}"
        "{% for c in m.calls or [] %}{{ call(c) }}{% if not loop.last %}, {% endif %}{% endfor %}"
        "{% if ns.n > 8 %}{% break %}{% endif %}{% endfor %}{% for k, v in extra.items() %}{{ k }}"
        "={{ '%s!' % v }};{% endfor %}{{ [1, ns.n, 'a' * 3] | join('-') }}"
        "{{ {'a': ns.n} | tojson }}"
    )
    values = {
        "messages": [
            {"role": "user", "content": " hi "},
            {"role": "skip", "content": ""},
            {"role": "a", "content": "x", "calls": [{"name": "f", "args": {"é": [1]}}] * 2},
        ],
        "extra": {"a": 1, "b": "c"},
    }
    expected = COMPILE(source).render(**values)
    assert render(source, **values) == expected
    assert isinstance(compile_bounded(source, COMPILE), Template)


def test_a_template_is_compiled_once():
    source = "{{ messages[0].content }}"
    assert compile_bounded(source, COMPILE) is compile_bounded(source, COMPILE)


def test_a_template_that_is_checked_first_imports_transformers_without_advice(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    check_chat_template("{{ messages }}")
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"
