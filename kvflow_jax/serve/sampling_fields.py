"""The fields of request bodies that are sampling parameters, made from their definitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import BaseModel, Field, create_model

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.param import Flag, Integer, Number, Param, TokenBias, TokenIds
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams
from kvflow_jax.serve.json_types import JsonInt, JsonInts, JsonNumbers

Schema = TypeVar("Schema", bound=BaseModel)

_DEFAULTS = {one.name: one.default for one in fields(SamplingParams)}


def with_sampling_fields(schema: type[Schema]) -> type[Schema]:
    """Add a field for each sampling parameter to a schema that does not declare it itself.

    A field is null by default, which means the parameter's default.
    """
    missing: dict[str, Any] = {
        field: (_json_type(param), Field(None, description=f"{param.doc}; {param.accepts}"))
        for name, param in PARAMS.items()
        if (field := param.http_name or name) not in schema.model_fields
    }
    extended: type[Schema] = create_model(
        schema.__name__,
        __base__=schema,
        __doc__=schema.__doc__,
        __module__=schema.__module__,
        **missing,
    )
    return extended


def sampling_values(body: BaseModel) -> dict[str, Any]:
    """Return the values of a body's sampling fields, by parameter, without those not set.

    A value that stands for the parameter's default is that default: it overrides the model's own.

    Raises:
        InvalidRequestError: a key of ``logit_bias`` is no token id.
    """
    values = {}
    for name, param in PARAMS.items():
        value = getattr(body, param.http_name or name)
        is_off = isinstance(param, Integer | Number) and value == param.http_off is not None
        if value is None:
            continue
        if is_off:
            value = _DEFAULTS[name]
        values[name] = _read_bias(name, param, value) if isinstance(param, TokenBias) else value
    return values


def _json_type(param: Param) -> Any:
    """Return the type of a parameter's field, for pydantic."""
    match param:
        case Integer():
            return JsonInt | None
        case Number():
            return float | None
        case Flag():
            return bool | None
        case TokenIds():
            return JsonInts | None
        case TokenBias():
            return JsonNumbers | None
    # A union of types would give errors that name its branches: SamplingParams checks the value.
    return Any


def _read_bias(name: str, param: TokenBias, bias: Mapping[str, float]) -> dict[int, float]:
    """Return a bias by token id; JSON's keys are strings."""
    # Checked first, to spend no work on an oversized dict.
    if len(bias) > param.max_num:
        raise InvalidRequestError(
            f"{name} must have at most {param.max_num} entries, got {len(bias)}", name
        )
    read = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            raise InvalidRequestError(f"keys of {name} must be token ids, got {key!r}", name)
        read[int(key)] = float(value)
    return read
