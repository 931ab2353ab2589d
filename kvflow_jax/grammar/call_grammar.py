"""Grammars of outputs that call tools, in the call syntax of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.lark import ANY_TEXT, LarkWriter
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.tools.python_calls import is_keyword
from kvflow_jax.tools.syntaxes.base import CallForm, CallLayout
from kvflow_jax.tools.syntaxes.mistral import ARGS
from kvflow_jax.tools.syntaxes.qwen3_coder import (
    FUNCTION,
    FUNCTION_END,
    PARAMETER,
    PARAMETER_END,
    is_text,
)
from kvflow_jax.tools.tool import Tool

_DEFINITIONS = ("$defs", "definitions")
# Keywords with which an object may have properties that ``properties`` does not name.
_OTHER_PROPERTIES = frozenset(
    ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")
)


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Writes the grammars of outputs that call tools.

    Args:
        layout: of calls, as the model writes them.
        special_ids: texts of the layout that are special tokens, with their ids.
        tools: the tools that may be called; at least one.
        is_single: an output has at most one call.
    """

    layout: CallLayout
    special_ids: Mapping[str, int]
    tools: Sequence[Tool]
    is_single: bool

    def calls(self) -> str:
        """Return the grammar of outputs that are calls, at least one, and nothing else.

        The arguments conform to the schemas.

        Raises:
            InvalidRequestError: a tool's schema does not fit the call syntax.
        """
        lark = LarkWriter(self.special_ids)
        return lark.write(self._span(lark, self._call(lark), can_repeat=not self.is_single))

    def calls_or(self, answer: StructuredOutputsParams) -> str:
        """Return the grammar of outputs that are calls, or what ``answer`` asks for.

        Raises:
            InvalidRequestError: as ``calls``, or ``answer`` does not go together with tools.
        """
        lark = LarkWriter(self.special_ids)
        # Without a marker, calls begin as an answer in JSON does.
        call = self._call(lark, is_compact=bool(self.layout.begin))
        calls = self._span(lark, call, can_repeat=not self.is_single)
        return lark.write(f"{lark.rule(calls)} | {lark.rule(lark.structured(answer))}")

    def text_and_calls(self) -> str:
        """Return the grammar of outputs in which text and calls alternate.

        The arguments of tools that are strict conform to their schemas. Those of others are any
        JSON object, if the call syntax writes arguments as JSON.

        Raises:
            InvalidRequestError: as ``calls``.
        """
        lark = LarkWriter(self.special_ids)
        layout = self.layout
        call = self._call(lark, only_strict=True)
        if not layout.begin:
            # A call is the whole output, so a text must not begin like one.
            first = "\\[" if layout.form is CallForm.PYTHON else "{"
            calls = self._span(lark, call, can_repeat=not self.is_single)
            return lark.write(f"{lark.rule(calls)} | /\\s*([^\\s{first}](?s:.*))?/")
        text = lark.rule(ANY_TEXT)
        if lark.is_special(layout.begin):
            begin = f"{text} {lark.text(layout.begin)}"
        else:
            begin = lark.rule(f"{ANY_TEXT} {lark.text(layout.begin)}", "[lazy]")
        # Where a call has a marker of its own, the next one follows as text and marker.
        can_repeat = not self.is_single and layout.begin not in layout.separator
        calls = lark.rule(f"{begin} {self._span(lark, call, can_repeat, has_begin=False)}")
        return lark.write(f"{calls} | {text}" if self.is_single else f"{calls}* {text}")

    def _span(
        self, lark: LarkWriter, call: str, can_repeat: bool, *, has_begin: bool = True
    ) -> str:
        """Return what matches the calls from the layout's marker to its end."""
        layout = self.layout
        head = lark.text((layout.begin if has_begin else "") + layout.open)
        more = f"({lark.text(layout.separator)} {call})*" if can_repeat else ""
        return " ".join(part for part in (head, call, more, lark.text(layout.close)) if part)

    def _call(self, lark: LarkWriter, *, only_strict: bool = False, is_compact: bool = True) -> str:
        """Return the name of the rule of one call."""
        calls = [
            self._call_of(
                lark, tool, is_free=only_strict and not tool.is_strict, is_compact=is_compact
            )
            for tool in self.tools
        ]
        return lark.rule(" | ".join(calls))

    def _call_of(self, lark: LarkWriter, tool: Tool, *, is_free: bool, is_compact: bool) -> str:
        schema = _closed(tool)
        form = self.layout.form
        if form is CallForm.PYTHON:
            return _python_call(lark, tool)
        if form is CallForm.TAGS:
            return _tagged_call(lark, tool)
        arguments = {"type": "object"} if is_free else schema
        if form is CallForm.NAMED:
            return lark.rule(
                f"{lark.text(tool.name + ARGS)} {lark.json(arguments, is_compact=True)}"
            )
        key = form.value
        call = {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                key: _with_moved_refs(arguments, f"#/properties/{key}"),
            },
            "required": ["name", key],
            "additionalProperties": False,
        }
        return lark.rule(lark.json(call, is_compact=is_compact))


def _closed(tool: Tool) -> Mapping[str, Any]:
    """Return a tool's schema, without parameters that it does not name.

    Raises:
        InvalidRequestError: the arguments are no object.
    """
    schema = tool.schema
    kinds = schema.get("type", "object")
    if kinds != "object" and (not isinstance(kinds, list) or "object" not in kinds):
        raise InvalidRequestError(
            f"the parameters of the tool {tool.name!r} must be a schema of type object, "
            f"not {kinds!r:.80}",
            param="tools",
        )
    schema = {**schema, "type": "object"}
    named, required = schema.get("properties"), schema.get("required")
    if not isinstance(named, Mapping) or schema.keys() & _OTHER_PROPERTIES:
        return schema
    if isinstance(required, list) and not all(
        isinstance(name, str) and name in named for name in required
    ):
        return schema
    return {**schema, "additionalProperties": False}


def _with_moved_refs(value: Any, pointer: str) -> Any:
    """Return a schema whose references within it begin at ``pointer``, where it is put."""
    if isinstance(value, Mapping):
        return {
            key: f"{pointer}{item[1:]}"
            if key == "$ref" and isinstance(item, str) and item.startswith("#")
            else _with_moved_refs(item, pointer)
            for key, item in value.items()
        }
    return [_with_moved_refs(item, pointer) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    schema: Any
    is_required: bool


def _parameters(tool: Tool) -> list[_Parameter]:
    """Return the parameters of a tool; the schema of each has the tool's definitions."""
    listed = tool.schema.get("required")
    names = listed if isinstance(listed, list) else ()
    required = {name for name in names if isinstance(name, str)}
    shared = {key: tool.schema[key] for key in _DEFINITIONS if key in tool.schema}
    return [
        _Parameter(name, {**shared, **one} if isinstance(one, Mapping) else {}, name in required)
        for name, one in tool.parameters.items()
    ]


def _python_call(lark: LarkWriter, tool: Tool) -> str:
    written = []
    for parameter in _parameters(tool):
        if is_keyword(parameter.name):
            value = f"{lark.text(parameter.name + '=')} {_python_value(lark, parameter.schema)}"
            written.append((lark.rule(value), parameter.is_required))
        elif parameter.is_required:
            raise _unwritable(tool, parameter)
    # Of each parameter two rules: it is the first that is written, or it follows another.
    first, following = lark.rule('""'), lark.rule('""')
    for value, is_required in reversed(written):
        options = [[f"{value} {following}"], [f'", " {value} {following}']]
        if not is_required:
            options = [options[0] + [first], options[1] + [following]]
        first, following = (lark.rule(" | ".join(one)) for one in options)
    return lark.rule(f'{lark.text(tool.name + "(")} {first} ")"')


def _python_value(lark: LarkWriter, schema: Mapping[str, Any]) -> str:
    match schema.get("type"):
        case "boolean" if not schema.keys() & {"enum", "const"}:
            return '("True" | "False")'
        case "null":
            return '"None"'
    return lark.json(schema, is_compact=True)


def _tagged_call(lark: LarkWriter, tool: Tool) -> str:
    end = f"\n{PARAMETER_END}\n"
    written = []
    for parameter in _parameters(tool):
        if any(char in parameter.name for char in "<>\n"):
            if parameter.is_required:
                raise _unwritable(tool, parameter)
            continue
        begin = lark.text(f"{PARAMETER}{parameter.name}>\n")
        if not is_text(parameter.schema):
            value = f"{lark.json(parameter.schema, is_compact=True)} {lark.text(end)}"
        elif texts := _texts(parameter.schema):
            value = f"({' | '.join(map(lark.text, texts))}) {lark.text(end)}"
        else:
            value = lark.rule(f"{_text_pattern(parameter.schema)} {lark.text(end)}", "[lazy]")
        one = lark.rule(f"{begin} {value}")
        written.append(one if parameter.is_required else f"{one}?")
    begin, close = lark.text(f"{FUNCTION}{tool.name}>\n"), lark.text(FUNCTION_END)
    return lark.rule(" ".join([begin, *written, close]))


def _texts(schema: Mapping[str, Any]) -> list[str]:
    """Return the texts that a schema lists; none if it does not."""
    values = [schema["const"]] if "const" in schema else schema.get("enum") or []
    return [value for value in values if isinstance(value, str) and value]


def _text_pattern(schema: Any) -> str:
    """Return the pattern of a text of a schema's length; its ``pattern`` and ``format`` are not."""
    bounds = schema if isinstance(schema, Mapping) else {}
    shortest, longest = bounds.get("minLength", 0), bounds.get("maxLength", "")
    return f"/(?s:.{{{shortest},{longest}}})/"


def _unwritable(tool: Tool, parameter: _Parameter) -> InvalidRequestError:
    return InvalidRequestError(
        f"the parameter {parameter.name!r:.80} of the tool {tool.name!r} has no place in the "
        "model's call syntax; rename it",
        param="tools",
    )
