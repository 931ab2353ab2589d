"""Chat templates bounded in time, loops and output.

A template comes with a checkpoint, and runs on the threads that all requests share. Jinja's sandbox
keeps it from what it must not reach; a budget keeps it from running without end: each pass of a
loop and each call of a macro counts and looks at the clock, and whatever makes a long text or list
out of a short one is checked before it does.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from kvflow_jax.models.quiet_imports import transformers

MAX_PASSES = 1_000_000  # of loops and macros in one rendering, about 0.2 us each
MAX_RENDER_S = 2.0
MAX_LEN = 16 << 20  # characters of a text
MAX_ITEMS = 200_000  # of a list, with those of the lists in it
MAX_NUMBER = 1 << 16  # a width, a count, a power
_PASSES_PER_LOOK = 256  # at the clock

_GROWING_METHODS = frozenset(
    [
        "center",
        "expandtabs",
        "format",
        "format_map",
        "join",
        "ljust",
        "replace",
        "rjust",
        "translate",
        "zfill",
    ]
)
_LONG_NUMBER = re.compile(r"\d{5}|\*")  # in a format


class TemplateBudgetError(jinja2.TemplateError):
    """A template does too much."""


@dataclass(slots=True)
class _Budget:
    num_passes: int
    end_s: float


_budget: ContextVar[_Budget | None] = ContextVar("template_budget", default=None)


@contextmanager
def template_budget(
    max_passes: int = MAX_PASSES,
    max_s: float = MAX_RENDER_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Bound the renderings within the context; beyond it they raise TemplateBudgetError."""
    token = _budget.set(_Budget(max_passes, clock() + max_s))
    try:
        yield
    finally:
        _budget.reset(token)


def bound_chat_templates() -> None:
    """Make transformers compile chat templates with ``compile_bounded`` from now on."""
    utils = _chat_template_utils()
    utils._compile_jinja_template = functools.partial(
        compile_bounded, compile_template=utils._cached_compile_jinja_template
    )


def check_chat_template(source: str) -> None:
    """Compile a chat template as transformers does, which caches it for the first chat.

    Raises:
        jinja2.TemplateSyntaxError: ``source`` is no template.
    """
    bound_chat_templates()
    _chat_template_utils()._compile_jinja_template(source)


def _chat_template_utils() -> Any:
    """Return transformers' module that renders chat templates; it may be the first import of it."""
    return importlib.import_module(f"{transformers().__name__}.utils.chat_template_utils")


@functools.lru_cache(maxsize=16)
def compile_bounded(source: str, compile_template: Callable[[str], jinja2.Template]) -> Any:
    """Return ``source`` as a template of the environment of ``compile_template``, with a budget.

    Args:
        compile_template: makes an ImmutableSandboxedEnvironment of its own for each template.
    """
    # Of an empty template: the compiler computes what is constant, without a budget.
    environment = compile_template("").environment
    # Its filters, globals and extensions are those of the caller; only what it generates changes.
    environment.__class__ = BoundedEnvironment
    environment.filters = {
        name: _bounded_filter(name, call) for name, call in environment.filters.items()
    }
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    return environment.from_string(source)


def _written(parts: Iterable[str]) -> str:
    """Return the parts of an output as one text, within ``MAX_LEN``."""
    texts, length = [], 0
    for part in parts:
        length += len(part)
        _check_len(length)
        texts.append(part)
    return "".join(texts)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with the budget in what it generates."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_written)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        template: nodes.Template = _InsertBudget().visit(parsed)
        return template

    def count_pass(self) -> bool:
        """Count one pass of a loop or macro; return True."""
        budget = _budget.get()
        if budget is not None:
            budget.num_passes -= 1
            if budget.num_passes < 0:
                raise TemplateBudgetError(f"the chat template loops more than {MAX_PASSES} times")
            is_late = not budget.num_passes % _PASSES_PER_LOOK and time.monotonic() > budget.end_s
            if is_late:
                raise TemplateBudgetError("the chat template takes too long")
        return True

    def items_bounded(self, value: Any) -> Any:
        """Return a list, tuple or mapping that the template writes out."""
        return _check_items(value)

    def concat_bounded(self, *parts: object) -> str:
        """Return texts behind each other, Jinja's ``~``."""
        texts = [str(part) for part in parts]
        _check_len(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
            _check_product(right, left)
        elif operator == "**":
            _check_number(right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "+" and isinstance(left, str | list | tuple):
            _check_len(len(left) + len(right) if isinstance(right, str | list | tuple) else 0)
        return _check_items(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # These names, as Jinja has them, for the keyword arguments of a template.
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if name in _GROWING_METHODS:
            _check_growth(name, owner, (*args, *kwargs.values()))
        return _check_items(super().call(__context, __obj, *args, **kwargs))


class _InsertBudget(NodeTransformer):
    """Counts a pass at the beginning of each loop, macro and block, and checks ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("count_pass"), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("count_pass"), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("count_pass"), lineno=node.lineno))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _call("concat_bounded", node.nodes)

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        # A literal that is assigned to, or that the compiler folds, stays as it is.
        return _call("items_bounded", [node]) if any(node.find_all(nodes.Name)) else node

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        return self.visit_List(node) if node.ctx == "load" else node


def _call(name: str, args: Sequence[nodes.Expr] = ()) -> nodes.Call:
    attribute = nodes.EnvironmentAttribute(name)
    return nodes.Call(attribute, list(args), [], None, None, lineno=1)


def _bounded_filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    num_implicit = 1 if hasattr(call, "jinja_pass_arg") else 0

    @functools.wraps(call)  # with the mark of the implicit argument
    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[num_implicit:]
        if name in ("join", "replace", "format"):
            _check_growth(name, value, (*others, *kwargs.values()))
        else:
            for number in (*others, *kwargs.values()):
                _check_number(number)
        return call(*args, **kwargs)

    return bounded


def _check_growth(name: str, value: Any, args: Sequence[Any]) -> None:
    """Check what a method or filter of a text makes of it."""
    for number in args:
        _check_number(number)
    if name.startswith("format"):
        _check_format(value)
    elif name == "replace":
        longest = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
        _check_len((len(str(value)) + 1) * max(1, longest) if longest > 64 else 0)
    elif name == "join":
        # As a method of the separator, and as a filter of the items.
        items, separator = (args[0], value) if isinstance(value, str) and args else (value, "")
        if not isinstance(value, str) and args and isinstance(args[0], str):
            separator = args[0]
        if isinstance(items, list | tuple):
            _check_len(sum(len(separator) + _text_len(item) for item in items))


def _text_len(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 16


def _check_product(value: object, times: object) -> None:
    if isinstance(value, str | list | tuple | bytes) and isinstance(times, int):
        _check_len(len(value) * times)


def _check_format(value: object) -> None:
    if isinstance(value, str) and _LONG_NUMBER.search(value):
        raise TemplateBudgetError("the chat template formats a text to an excessive width")


def _check_number(value: object) -> None:
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        raise TemplateBudgetError(f"the chat template uses {value!r:.20} as a length or count")


def _check_items(value: Any) -> Any:
    """Return a value; raise if it has too many items, those of its items included.

    A list that holds another one twice doubles what is written of it.
    """
    if isinstance(value, list | tuple | dict):
        num_items, unread = 0, [value]
        while unread:
            items = unread.pop()
            num_items += len(items)
            if num_items > MAX_ITEMS:
                raise TemplateBudgetError("the chat template makes an excessively long list")
            inner = items.values() if isinstance(items, dict) else items
            unread += [item for item in inner if isinstance(item, list | tuple | dict)]
    return value


def _check_len(length: int) -> None:
    if length > MAX_LEN:
        raise TemplateBudgetError("the chat template makes an excessively long text")
