"""What the output of a request must match, as its caller asks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from kvflow_jax.errors import InvalidRequestError

MAX_GRAMMAR_CHARS = 256 * 1024
# Of a small schema; and of each character of a long literal, in any kind of grammar. Schemas of
# many short names take an eighth of it.
_COMPILED_BYTES, _COMPILED_BYTES_PER_CHAR = 160 << 10, 384


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """What the output of a request must match. Set exactly one field. The names are vLLM's.

    Args:
        json: a JSON Schema, as a mapping or as JSON text; kept as text.
        regex: a regular expression for the whole output, without look-around and back-references.
        choice: texts, one of which is the output; kept as a tuple.
        grammar: a context-free grammar, in Lark (rule ``start``, with llguidance's extensions such
            as ``%json {schema}``) or in GBNF, llama.cpp's EBNF (rule ``root``).
        json_object: True: any JSON object.
        param: the field of the request that asked for it, which errors name.

    Raises:
        InvalidRequestError: not exactly one field is set, or its value has the wrong type or is too
            long. Whether the grammar itself is valid turns out when it is compiled.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    param: str = field(default="structured_outputs", compare=False, kw_only=True)

    def __post_init__(self) -> None:
        given = [name for name in FIELDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise self.error(
                f"{self.param} must have exactly one of {', '.join(FIELDS)}, "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        match given[0]:
            case "json":
                object.__setattr__(self, "json", self._schema_text())
            case "choice":
                object.__setattr__(self, "choice", self._choices())
            case "json_object":
                if self.json_object is not True:
                    raise self.error(f"json_object of {self.param} must be true or false")
            case name:
                self._check_text(name, getattr(self, name))

    @classmethod
    def of_mapping(
        cls, values: Mapping[str, Any], param: str = "structured_outputs"
    ) -> StructuredOutputsParams:
        """Return the params of a mapping from field names to values; None is absent.

        Raises:
            InvalidRequestError: a field is unknown, or see ``StructuredOutputsParams``.
        """
        given = {name: value for name, value in values.items() if value is not None}
        unknown = sorted(name for name in given if name not in FIELDS and given[name] is not False)
        if unknown:
            raise InvalidRequestError(
                f"{', '.join(unknown)} of {param} is not supported; {param} accepts "
                f"{', '.join(FIELDS)}",
                param,
            )
        return cls(**{name: given[name] for name in FIELDS if name in given}, param=param)

    @property
    def num_compiled_bytes(self) -> int:
        """Upper estimate of the memory of its compiled form, in bytes."""
        texts = (self.json, self.regex, self.grammar, *(self.choice or ()))
        num_chars = sum(len(text) for text in texts if isinstance(text, str))
        return _COMPILED_BYTES + _COMPILED_BYTES_PER_CHAR * num_chars

    def error(self, message: str) -> InvalidRequestError:
        """Return an error that names the field of the request."""
        return InvalidRequestError(message, self.param)

    def _schema_text(self) -> str:
        schema: object = self.json
        if isinstance(schema, str):
            self._check_text("json", schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise self.error(f"the JSON Schema of {self.param} is no JSON: {error}") from None
        if not isinstance(schema, Mapping):
            raise self.error(f"the JSON Schema of {self.param} must be an object")
        try:
            # The order of properties is the order in which they are generated.
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(f"the JSON Schema of {self.param} is no JSON: {error}") from None
        self._check_text("json", text)
        return text

    def _choices(self) -> tuple[str, ...]:
        listed: object = self.choice
        choices = tuple(listed) if isinstance(listed, list | tuple) else ()
        if not choices or not all(isinstance(one, str) and one for one in choices):
            raise self.error(f"the choices of {self.param} must be a list of texts, none empty")
        self._check_text("choice", "".join(choices))
        return choices

    def _check_text(self, name: str, text: object) -> None:
        if not isinstance(text, str):
            raise self.error(f"{name} of {self.param} must be a text, not {type(text).__name__}")
        if len(text) > MAX_GRAMMAR_CHARS:
            raise self.error(
                f"{name} of {self.param} has {len(text)} characters; the limit is "
                f"{MAX_GRAMMAR_CHARS}"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(f"{name} of {self.param} has characters that are no text") from None


FIELDS = tuple(one.name for one in fields(StructuredOutputsParams) if one.name != "param")
